"""The steps: at every boundary the policy picks who shares the next one. Never waits for a reader or a codec."""

from collections.abc import Callable
from dataclasses import dataclass

from kleinserve.core import Progress
from kleinserve.metrics import Metrics
from kleinserve.scheduler.ending import Ending, together
from kleinserve.scheduler.engine import Engine
from kleinserve.scheduler.forecast import Forecast
from kleinserve.scheduler.outbox import Drawn, Outbox, Stepped
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.turns import Ration
from kleinserve.scheduler.watch import Watch
from kleinserve.scheduler.work import Need, Work

_CLEAN_STEPS = 32  # after which a budget that shrank is doubled


@dataclass
class Budget:
    """Tokens of one step at most; a larger work steps alone. It shrinks for want of memory and grows back."""

    limit: int
    tokens_max: int = 0
    _clean: int = 0

    def __post_init__(self) -> None:
        self.tokens_max = self.limit

    def shrink(self, tokens: int) -> None:
        """So many tokens found no room."""
        self._clean, self.tokens_max = 0, max(1, min(self.tokens_max, tokens * 3 // 4))

    def passed(self) -> None:
        """A step found room."""
        self._clean += 1
        if self._clean >= _CLEAN_STEPS and self.tokens_max < self.limit:
            self._clean, self.tokens_max = 0, min(self.limit, 2 * self.tokens_max)


class Stepping:
    """What the stepping thread does."""

    def __init__(
        self,
        engine: Engine,
        queue: Queue,
        forecast: Forecast,
        ending: Ending,
        outbox: Outbox,
        metrics: Metrics,
        watch: Watch,
        budget: Budget,
        clock: Callable[[], float],
    ):
        self._engine, self._queue, self._forecast, self._ending = engine, queue, forecast, ending
        self._outbox, self._metrics, self._watch, self._budget, self._clock = outbox, metrics, watch, budget, clock
        self._ration = Ration()
        metrics.step_tokens_max.set(budget.tokens_max)

    def turn(self) -> bool:
        """Take one step, if there is anyone to take it; whether there was."""
        now = self._clock()
        ready = self._ending.expire(self._queue.ready(), now)
        picked = self._forecast.pick(ready, now, self._budget.tokens_max, self._ration)
        works = self._queue.hold(picked)
        if works:
            is_aged = self._forecast.claim(works[0]).standing.is_aged(now)
            seconds = self._step(works, now)
            self._ration.spend(seconds, is_aged=is_aged)
        return bool(picked)

    def _step(self, works: list[Work], now: float) -> float:
        if first := self._queue.start(works, now):
            self._outbox.started(first)
        is_shared, tokens = True, sum(work.demand.tokens for work in works)

        def shrink() -> None:
            nonlocal is_shared
            if is_shared and len(works) > 1:  # of each alone none is larger than the budget was
                is_shared = False
                self._budget.shrink(tokens)
                self._metrics.step_tokens_max.set(self._budget.tokens_max)
            self._engine.release()

        started, predicted = self._clock(), self._forecast.step_seconds(works)
        for work in works:
            work.busy_until = started + predicted
        with self._watch.over(predicted):
            stepped = together(self._advance, works, self._ending, shrink)
        seconds = self._clock() - started
        self._forecast.charge(works, seconds, [work.demand.work for work in works])
        for work in stepped:
            work.denoise_seconds += seconds
            work.steps_run += 1
            shared_by = len(stepped) if is_shared else 1
            work.max_step_requests = max(work.max_step_requests, shared_by)
            work.ran(Need.STEPS, started, started + seconds, shared_by)
        if is_shared and stepped:
            self._measured(stepped, seconds)
        self._hand_out(stepped)
        return seconds

    def _advance(self, works: list[Work]) -> None:
        self._engine.step([work.render for work in works])

    def _measured(self, works: list[Work], seconds: float) -> None:
        error = self._forecast.observe("step", sum(work.demand.work for work in works), seconds)
        self._metrics.ran("step", seconds, error)
        self._metrics.stepped(len(works), sum(work.demand.tokens for work in works))
        self._budget.passed()
        self._metrics.step_tokens_max.set(self._budget.tokens_max)

    def _hand_out(self, works: list[Work]) -> None:
        """Tell of each what the step did and shows, then let the works go on."""
        drawn: dict[Work, Drawn] = {}

        def draw(wanted: list[Work]) -> None:
            pictures = self._engine.previews([work.render for work in wanted])
            drawn.update(zip(wanted, pictures, strict=True))

        if wanted := [work for work in works if not work.is_gone and self._is_shown(work)]:
            together(draw, wanted, self._ending, self._engine.release)
        present = [work for work in works if not work.is_gone]
        for work in present:
            work.touch()
        if present:
            self._outbox.stepped([Stepped(work, self._progress(work), drawn.get(work)) for work in present])
        for need in (Need.STEPS, Need.DECODE):
            on = [work for work in works if work.render.is_denoised == (need is Need.DECODE)]
            for work in self._queue.release(on, need) if on else ():
                self._ending.gone(work)

    def _is_shown(self, work: Work) -> bool:
        return work.request.options.preview.wants(work.render.steps_done, work.render.total_steps)

    def _progress(self, work: Work) -> Progress:
        return Progress(work.render.steps_done, work.render.total_steps, self._forecast.remaining(work))
