"""A scheduler on a scripted engine, whose turns a test takes, and what it told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kleinserve.config import load
from kleinserve.core import (
    Operation,
    Options,
    Pixels,
    PreviewOptions,
    Priority,
    Progress,
    Reference,
    Request,
    Size,
)
from kleinserve.errors import KleinError
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import STAGES, Cost, Line
from kleinserve.scheduler.outbox import Outbox, Stepped
from kleinserve.scheduler.scheduler import Admitted, Scheduler
from kleinserve.scheduler.work import Work

from tests.scheduler.scripted import Clock, ScriptedEngine

MEGAPIXEL = Size(1024, 1024)
QUARTER = Size(512, 512)
TINY = Size(64, 64)


@dataclass
class Told:
    """Everything that came out, in order."""

    started: list[Work] = field(default_factory=list)
    progress: list[tuple[Work, Progress]] = field(default_factory=list)
    drawn: list[tuple[Work, int]] = field(default_factory=list)
    decoded: list[Work] = field(default_factory=list)
    failed: dict[Work, KleinError] = field(default_factory=dict)
    died: list[BaseException] = field(default_factory=list)

    def outbox(self) -> Outbox:
        return Outbox(self.started.extend, self._stepped, self._decoded, self._failed, self.died.append)

    def _stepped(self, all_stepped: Sequence[Stepped]) -> None:
        for work, progress, drawn in all_stepped:
            self.progress.append((work, progress))
            if drawn is not None:
                assert isinstance(drawn(), Pixels)
                self.drawn.append((work, progress.step))

    def _decoded(self, work: Work) -> None:
        assert work not in self.decoded
        assert work not in self.failed
        self.decoded.append(work)

    def _failed(self, work: Work, error: KleinError) -> None:
        assert work not in self.decoded
        assert work not in self.failed
        self.failed[work] = error


@dataclass
class Stage:
    """Seconds: a step 0.01 and 0.1 for 1000 tokens, a prompt 0.02, a megapixel's decode 0.8 in 8 pieces."""

    settings: dict[str, Any] = field(default_factory=dict)
    is_calibrated: bool = True

    def __post_init__(self) -> None:
        self.clock, self.told, self.metrics = Clock(), Told(), Metrics()
        lines = {
            "text": Line(0.0, 0.02),
            "references": Line(0.0, 0.1),
            "step": Line(0.01, 0.0001),
            "decode": Line(0.0, 0.8),
            "encode": Line(),
        }
        self.engine = ScriptedEngine(
            self.clock,
            Line(0.01, 0.0001),
            Line(0.0, 0.02),
            Line(0.0, 0.1),
            Line(0.0, 0.8),
            decode_pieces=8,
            text_tokens=100,
        )
        config = load({"step_tokens_max": 8192, **self.settings})
        self.scheduler = Scheduler(self.engine, config, self.metrics, self.told.outbox(), self.clock)
        assert set(lines) == set(STAGES)
        self.scheduler.prepare(Cost(lines, self.is_calibrated))

    def submit(
        self,
        size: Size = QUARTER,
        *,
        steps: int = 4,
        deadline: float | None = None,
        priority: Priority = Priority.STANDARD,
        references: int = 0,
        caller: str = "anonymous",
        preview: PreviewOptions | None = None,
        prompt: str = "a star",
    ) -> Admitted:
        options = Options(0, steps, 1.0, preview=preview or PreviewOptions(), priority=priority)
        reference = Reference(Pixels(MEGAPIXEL, 3, b""), b"")
        operation = Operation.EDIT if references else Operation.GENERATE
        request = Request("id", operation, prompt, (reference,) * references, size, options, caller)
        return self.scheduler.submit(self.engine.render(request), deadline)

    def work(self, size: Size = QUARTER, **asked: Any) -> Work:
        return self.submit(size, **asked).work

    def aside_until_idle(self) -> None:
        """All that can be done beside the steps."""
        while self.scheduler.aside.turn():
            pass

    def denoise(self, *works: Work) -> None:
        """Begin these and take all their steps; nothing is decoded."""
        self.aside_until_idle()
        while self.scheduler.stepping.turn():
            pass
        assert all(work.render.is_denoised for work in works)

    def finish(self) -> None:
        """Serve until nothing is left to do."""
        while self.scheduler.aside.turn() or self.scheduler.stepping.turn():
            pass

    def finish_steps_first(self) -> None:
        """The same, with every step that can be taken before what is beside them."""
        while self.scheduler.stepping.turn() or self.scheduler.aside.turn():
            pass

    def names(self, *skipped: str) -> list[str]:
        """What the engine was asked, in order."""
        return [name for name, _ in self.engine.calls if name not in skipped]
