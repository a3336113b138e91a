"""One admitted request as the engine's threads see it. Knows no reader, no file format, no caller's connection."""

from dataclasses import dataclass, field
from enum import Enum

from kleinserve.core import Demand, Priority, Request, Span, Spent, Timings
from kleinserve.errors import KleinError
from kleinserve.scheduler.admission import Claim
from kleinserve.scheduler.cost import Share
from kleinserve.scheduler.engine import Render
from kleinserve.scheduler.turns import Account

_AT_ONCE_SECONDS = 0.001


class Need(Enum):
    """What a work waits for, or what is being done for it. A difference cut-out goes from SECOND to STEPS again."""

    TEXT = "text"
    REFERENCES = "references"
    STEPS = "step"
    DECODE = "decode"
    SECOND = "second"


@dataclass(eq=False, repr=False)
class Work:
    """One request on its way through the engine. Whoever holds it changes it; `is_gone` and the deadline, anyone.

    `arrived`, `started`, `deadline`: seconds on the scheduler's clock. `account`: its caller's turns.
    `accelerator_seconds`: its share, by work, of each step, prompt, reference and decode run.
    `at_hand_seconds`: had so far of the unit of work that is open for it. `busy_until`: when the step or the piece
    should end that it is in now. `is_alone`: to be tried alone, after a
    failure in company.
    """

    render: Render
    demand: Demand
    account: Account
    arrived: float
    deadline: float | None
    priority: Priority
    need: Need = Need.TEXT
    is_held: bool = False
    is_gone: bool = False
    is_alone: bool = False
    gone_for: KleinError | None = None
    started: float | None = None
    text_seconds: float = 0.0
    references_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    accelerator_seconds: float = 0.0
    at_hand_seconds: float = 0.0
    busy_until: float = 0.0
    steps_run: int = 0
    max_step_requests: int = 0
    spans: list[Span] = field(default_factory=list)
    share: Share = field(default_factory=lambda: Share(0.0, 0.0))  # as it stands in the queue's sums
    claim: Claim | None = None  # what is predicted of it, kept by the forecast until something changes
    claim_epoch: int = -1

    @property
    def request(self) -> Request:
        return self.render.request

    @property
    def steps_left(self) -> int:
        return self.render.total_steps - self.render.steps_done

    @property
    def is_begun(self) -> bool:
        """Whether its prompt and references are encoded."""
        return self.need not in (Need.TEXT, Need.REFERENCES)

    def ran(self, need: Need, started: float, ended: float, requests: int) -> None:
        """So long something ran for it, shared by so many. A piece that follows at once extends the one before it."""
        stage = (Need.REFERENCES if need is Need.SECOND else need).value
        start, end, last = started - self.arrived, ended - self.arrived, self.spans[-1] if self.spans else None
        if last and need is not Need.STEPS and last.stage == stage and start - last.end_seconds < _AT_ONCE_SECONDS:
            start = self.spans.pop().start_seconds
        self.spans.append(Span(stage, start, end, requests))

    def touch(self) -> None:
        """Something changed of which its predictions are made."""
        self.claim = None

    def spent(self, now: float, encode_seconds: float = 0.0) -> Spent:
        """What it took of the engine until `now`; seconds of stages that were shared with others count in full."""
        waited = (now if self.started is None else self.started) - self.arrived
        timings = Timings(
            queue=max(0.0, waited - self.text_seconds - self.references_seconds),
            text=self.text_seconds,
            references=self.references_seconds,
            denoise=self.denoise_seconds,
            decode=self.decode_seconds,
            encode=encode_seconds,
        )
        took, spans = now - self.arrived, tuple(self.spans)
        if encode_seconds:
            spans += (Span("encode", took - encode_seconds, took),)
        microseconds = round(self.accelerator_seconds * 1e6)
        return Spent(timings, self.steps_run, microseconds, self.max_step_requests, took, spans)
