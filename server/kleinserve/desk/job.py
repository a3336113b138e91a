"""A job: one admitted request's life on the event loop, with any number of readers, or none."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from kleinserve.core import (
    Accepted,
    BackendEvent,
    Completed,
    EncodedImage,
    Failed,
    Finished,
    Outcome,
    Preview,
    Priority,
    Progress,
    Queued,
    Request,
    Spent,
    Started,
    Usage,
)
from kleinserve.desk.reader import Reader, Terms
from kleinserve.errors import Cancelled, DeadlinePassed, KleinError
from kleinserve.identity.limits import Grant
from kleinserve.usage.keys import Entry

READERS_MAX = 8
_URGENCY = tuple(Priority)


class Stage(Enum):
    """Where a job is; the value is the `where` of klein_cancelled_total."""

    WAITING = "queue"
    RUNNING = "step"
    DELIVERING = "delivery"
    OVER = "over"


@dataclass(eq=False)
class Job:
    """What the desk knows of one request. Its backend tells it through `take`; its readers are told by it.

    `on_change` is called when the stage has changed, `on_last` with the backend's last word. `accept_microseconds`:
    since 1970. `submitted`, `started`, `told` (when its readers heard anything last), `last_word` (the backend's) and
    `settled` (its image) on the event loop's clock. `error`: why it ended, the first cause.
    """

    request: Request
    usage: Usage
    record_id: str
    accept_microseconds: int
    grant: Grant
    on_change: Callable[["Job", Stage], None]
    on_last: Callable[["Job", Finished | Failed], None]
    accepted: Accepted | None = None
    stage: Stage = Stage.WAITING
    ended_in: Stage | None = None  # the stage before OVER
    submitted: float = 0.0
    started: float | None = None
    told: float = 0.0
    last_word: float | None = None
    settled: float | None = None
    readers: set[Reader] = field(default_factory=set)
    entry: Entry | None = None  # of its key
    is_redraw: bool = False  # billed before, never delivered: nothing is recorded again
    doubted_id: str = ""  # of its record, where the commit failed: it may be written yet
    is_committing: bool = False  # from here on its image is billed, whoever leaves
    image: EncodedImage | None = None
    spent: Spent = field(default_factory=Spent)
    error: KleinError | None = None
    _present: Queued | Progress | None = None
    _is_detached: bool = False
    _when_spent: list[Callable[[], None]] = field(default_factory=list)

    @property
    def queue_seconds(self) -> float:
        now = asyncio.get_running_loop().time()
        return (now if self.started is None else self.started) - self.submitted

    @property
    def is_detached(self) -> bool:
        """Whether it goes on without readers: as soon as one of them asked for DETACH."""
        self._is_detached = self._is_detached or any(reader.terms.is_detached for reader in self.readers)
        return self._is_detached

    @property
    def deadline(self) -> float | None:
        """The latest of its readers'; None where one has none, or where it is detached."""
        deadlines = [reader.terms.deadline for reader in self.readers]
        if self.is_detached or not deadlines or None in deadlines:
            return None
        return max(deadline for deadline in deadlines if deadline is not None)

    @property
    def priority(self) -> Priority:
        """The highest of its readers'."""
        return min((reader.terms.priority for reader in self.readers), key=_URGENCY.index)

    @property
    def estimated_remaining(self) -> float:
        """Seconds until its image is drawn, by what its backend said last."""
        if self.last_word is not None or self.accepted is None:
            return 0.0
        if isinstance(self._present, Progress):
            return self._present.estimated_remaining
        wait = self._present.estimated_wait if isinstance(self._present, Queued) else 0.0
        return wait + self.accepted.estimated_duration

    def completed(self) -> Completed:
        spent = self.spent
        return Completed(self.usage, spent.timings, spent.max_step_requests, 0)

    def join(self, terms: Terms, *, is_replay: bool) -> Reader:
        """A further stream of this job: accepted, then the present state; past previews are not repeated."""
        assert self.accepted is not None
        reader = Reader(replace(self.accepted, is_replay=is_replay), terms)
        if self.started is not None:
            reader.post(Started(self.started - self.submitted))
        if self.image is not None:
            reader.finish(self.image, self.completed())
        elif self._present is not None:
            reader.post(self._present)
        self.readers.add(reader)
        return reader

    def take(self, event: BackendEvent) -> None:
        """What its backend says, in order."""
        if isinstance(event, Finished | Failed):
            self.spent, self.last_word = event.spent, asyncio.get_running_loop().time()
            self.on_last(self, event)
            while self._when_spent:
                self._when_spent.pop()()
        elif self.stage in (Stage.WAITING, Stage.RUNNING):
            self._post(event)

    def when_spent(self, function: Callable[[], None]) -> None:
        """Call it once `spent` is known: now, or after the backend's last word."""
        if self.last_word is None:
            self._when_spent.append(function)
        else:
            function()

    def remind(self, seconds_left: float) -> None:
        """Its image is drawn, and what it waits for takes so many seconds yet: its readers hear of it."""
        total = self._present.total_steps if isinstance(self._present, Progress) else self.request.options.steps
        self._post(Progress(total, total, seconds_left))

    def _post(self, event: Queued | Started | Progress | Preview) -> None:
        self.told = asyncio.get_running_loop().time()
        if isinstance(event, Started):
            self.started, self._present = self.told, None
            self._become(Stage.RUNNING)
            for reader in self.readers:
                reader.forget_position()
        elif not isinstance(event, Preview):
            self._present = event
        for reader in self.readers:
            reader.post(event)

    def deliver(self, image: EncodedImage) -> None:
        """Its image is settled: every reader gets it."""
        self.image, self.settled = image, asyncio.get_running_loop().time()
        self._become(Stage.DELIVERING)
        for reader in self.readers:
            reader.finish(image, self.completed())

    def fail(self, error: KleinError) -> None:
        """Tell its readers why it ends, unless it has ended."""
        if self.stage is Stage.OVER:
            return
        self.error = self.error or error
        self._become(Stage.OVER)
        for reader in self.readers:
            reader.fail(error)

    def end(self, *, keeps_image: bool = False) -> None:
        """Nobody reads it; its image is no longer here, or kept for its key."""
        if not keeps_image:
            self.image = None
        if self.stage is not Stage.OVER:
            self._become(Stage.OVER)

    def shown(self, now: float) -> dict[str, Any]:
        """What an operator sees of it."""
        request, present = self.request, self._present
        predicted = present.estimated_wait if isinstance(present, Queued) else 0.0
        predicted = present.estimated_remaining if isinstance(present, Progress) else predicted
        return {
            "request_id": request.request_id,
            "caller": request.caller,
            "operation": request.operation.value,
            "stage": self.stage.value,
            "size": str(request.size),
            "step": present.step if isinstance(present, Progress) else 0,
            "steps": request.options.steps,
            "priority": request.options.priority.value,
            "readers": len(self.readers),
            "age_seconds": round(now - self.submitted, 3),
            "predicted_seconds": round(predicted, 3),
        }

    def _become(self, stage: Stage) -> None:
        before, self.stage = self.stage, stage
        self.ended_in = before if stage is Stage.OVER else None
        self.on_change(self, before)

    @property
    def outcome(self) -> Outcome:
        """How it ended, for its record."""
        if self.error is None:
            return Outcome.DELIVERED
        if isinstance(self.error, DeadlinePassed):
            return Outcome.DEADLINE
        return Outcome.CANCELLED if isinstance(self.error, Cancelled) else Outcome.FAILED
