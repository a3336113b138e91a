"""Works in, what becomes of them out: admits, keeps count, and owns the two threads. Knows no reader and no encoding.

Called from one thread, the event loop's, but for `start`, which takes as long as the warm-up. Nothing here waits for
the engine.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from kleinserve import process
from kleinserve.config import Config
from kleinserve.core import ANONYMOUS, MEGAPIXEL, Operation, Options, Priority, Request
from kleinserve.errors import (
    DeadlineImpossible,
    DeadlinePassed,
    DeadlineUnreachable,
    Draining,
    Internal,
    KleinError,
)
from kleinserve.metrics import Metrics
from kleinserve.scheduler import admission
from kleinserve.scheduler.aside import Aside, Window
from kleinserve.scheduler.calibrate import Bench, calibrate
from kleinserve.scheduler.conditioning import References, Second, Text
from kleinserve.scheduler.cost import Cost, Share
from kleinserve.scheduler.decoding import Decoding
from kleinserve.scheduler.ending import Ending
from kleinserve.scheduler.engine import Engine, Render
from kleinserve.scheduler.forecast import Forecast
from kleinserve.scheduler.outbox import Outbox
from kleinserve.scheduler.positions import Place, Positions
from kleinserve.scheduler.queue import Loop, Queue
from kleinserve.scheduler.stepping import Budget, Stepping
from kleinserve.scheduler.turns import Turns
from kleinserve.scheduler.unit import Stage
from kleinserve.scheduler.watch import Watch, Watchdog
from kleinserve.scheduler.work import Need, Work
from kleinserve.scheduler.worker import Worker

_STEP_TOKENS_MAX = 8192  # of the budget found by calibration: two images of 1024², whose activations fit
_WAIT_SECONDS = 1.0  # how long an estimate for those who have not come yet is good

log = structlog.get_logger()


class Admitted(NamedTuple):
    """A work that was let in. Seconds: until its first step, and of the whole were it alone."""

    work: Work
    wait_seconds: float
    duration_seconds: float


class Scheduler:
    """Admits works and feeds the engine's threads. Every work ends with one word in the outbox."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        metrics: Metrics,
        outbox: Outbox,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._engine, self._config, self._metrics, self._outbox, self._clock = engine, config, metrics, outbox, clock
        self._turns = Turns()
        self._forecast = Forecast(Cost(), clock, self._turns)
        self._queue = Queue(lambda work: self._forecast.claim(work).share)
        self._ending = Ending(self._queue, self._turns, outbox, self._ended)
        self._safety, self._positions = admission.Safety(), Positions()
        # Side by side only where each thread has all the threads that it was measured with.
        is_roomy = 2 * config.torch_threads <= process.cores()
        self._is_overlapping = engine.facts.device == "cpu" and is_roomy
        self._workers: list[Worker] = []
        self._watches = {loop: Watch(loop.value) for loop in Loop}
        self._watchdog: Watchdog | None = None
        self._counted_epoch = 0
        self._wait, self._wait_until = 0.0, float("-inf")
        self._typical: Render | None = None  # of those who have not come yet
        self._is_dead = False

    def start(self) -> None:
        """Calibrate on the threads that will serve, then serve. Raises what the warm-up raised."""
        steps, aside = self._workers = [Worker(loop, self._queue, self._died) for loop in Loop]
        self.prepare(calibrate(Bench(self._engine, steps.call, aside.call)))
        computes = self._engine.facts.device == "cpu"
        floor = self._config.watchdog_seconds
        self._watchdog = Watchdog([*self._watches.values()], floor, self._died, computes=computes)
        self._watchdog.start()
        steps.serve(self.stepping.turn)
        aside.serve(self.aside.turn)

    def prepare(self, cost: Cost) -> None:
        """Make the two loops, `stepping` and `aside`, for whoever takes their turns: the threads, or a simulator."""
        engine, queue, forecast, metrics = self._engine, self._queue, self._forecast, self._metrics
        config, ending, clock = self._config, self._ending, self._clock
        saturating = cost.saturating_tokens(engine.work_per_token) or _STEP_TOKENS_MAX
        budget = Budget(config.step_tokens_max or min(saturating, _STEP_TOKENS_MAX))
        forecast.use(cost, budget.limit * engine.work_per_token)
        watch = self._watches
        self.stepping = Stepping(
            engine, queue, forecast, ending, self._outbox, metrics, watch[Loop.STEPS], budget, clock
        )
        stages: dict[Need, Stage] = {
            Need.TEXT: Text(engine, queue, forecast, metrics),
            Need.REFERENCES: References(engine, queue, forecast, metrics),
            Need.DECODE: Decoding(engine, queue, forecast, metrics, ending, config.decode_pixels_max),
            Need.SECOND: Second(engine, queue),
        }
        window = Window(config.running_requests_max, config.running_requests_max * _STEP_TOKENS_MAX)
        self.aside = Aside(engine, queue, forecast, ending, stages, watch[Loop.ASIDE], window, clock)
        facts = engine.facts
        options = Options(0, facts.default_steps, facts.default_guidance_scale)
        typical = Request("typical", Operation.GENERATE, "", (), facts.default_size, options)
        self._typical = engine.render(typical)

    def submit(self, render: Render, deadline: float | None = None, priority: Priority | None = None) -> Admitted:
        """Let a request in; `deadline` in seconds on the clock, `priority` its own where none is given.

        Raises: DeadlinePassed, DeadlineImpossible, DeadlineUnreachable; Draining when closed.
        """
        work = self._work(render, deadline, priority)
        try:
            claims = self._forecast.claims(self._present(), work.arrived)
            if deadline is not None:
                self._check_deadline(work, deadline, claims, work.arrived)
            wait = self._wait_of(work, claims, work.arrived)
            if not self._queue.put(work):
                raise Draining()
        except BaseException:
            self._turns.go(render.request.caller)
            raise
        return Admitted(work, wait, self._forecast.remaining(work))

    def _present(self) -> list[Work]:
        return [work for work in self._queue.works() if not work.is_gone]

    def _work(self, render: Render, deadline: float | None, priority: Priority | None) -> Work:
        account = self._turns.come(render.request.caller)
        demand, wanted = self._engine.demand(render), priority or render.request.options.priority
        return Work(render, demand, account, self._clock(), deadline, wanted)

    def _check_deadline(self, work: Work, deadline: float, claims: list[admission.Claim], now: float) -> None:
        left = deadline - now
        if left <= 0:
            raise DeadlinePassed("the deadline had passed when the request could be admitted")
        if not (self._config.deadline_admission and self._forecast.cost.is_calibrated):
            return
        idle = self._forecast.idle(work)
        if idle > left:
            raise DeadlineImpossible(f"{left:.3f} s are left, an idle server needs {idle:.3f} s")
        if not claims:  # with nobody before it the idle server's time decides
            return
        mine, safety = self._forecast.claim(work), self._safety.factor
        late = admission.lateness(claims, mine, now, is_overlapping=self._is_overlapping, safety=safety)
        if late > 0:
            said = f"{left:.3f} s are left; with what is admitted that would be {late:.3f} s late"
            raise DeadlineUnreachable(said, retry_seconds=max(1.0, late))

    def _wait_of(self, work: Work, claims: list[admission.Claim], now: float) -> float:
        mine = self._forecast.claim(work).standing
        return admission.wait(claims, mine, now, is_overlapping=self._is_overlapping)

    def cancel(self, work: Work, error: KleinError | None = None) -> None:
        """It fails with this error, without one with Cancelled: now, where no thread has it, else at the next boundary.

        Nothing happens where it has ended.
        """
        self._ending.cancel(work, error)

    def change(self, work: Work, deadline: float | None, priority: Priority) -> None:
        """Its deadline and its priority are these from now on."""
        work.deadline, work.priority = deadline, priority
        work.touch()
        self._queue.ring(*Loop)

    def remaining(self, work: Work) -> float:
        """Seconds until its image, were it alone from now on."""
        return self._forecast.remaining(work)

    def encoded(self, work: Work, seconds: float) -> None:
        """Its image was encoded in so many seconds, elsewhere: to be foreseen from now on."""
        error = self._forecast.observe("encode", work.request.size.pixels / MEGAPIXEL, seconds)
        self._metrics.ran("encode", seconds, error)

    @property
    def waiting(self) -> int:
        """Works that have had no step."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        return self._queue.running

    @property
    def busy_seconds(self) -> float:
        """Predicted seconds until everything that is here is done."""
        if self._counted_epoch != self._forecast.epoch:
            self._counted_epoch = self._forecast.epoch
            self._queue.recount()
        return admission.spend([self._queue.total], is_overlapping=self._is_overlapping)

    @property
    def wait_seconds(self) -> float:
        """Predicted seconds that a STANDARD request of the default size would wait now; looked at once a second."""
        now = self._clock()
        if self._typical is not None and now >= self._wait_until:
            claims = self._forecast.claims(self._present(), now)
            work = self._work(self._typical, None, Priority.STANDARD)
            self._turns.go(ANONYMOUS.name)
            self._wait, self._wait_until = self._wait_of(work, claims, now), now + _WAIT_SECONDS
        return self._wait

    def positions(self) -> list[Place]:
        """Of the waiting works, those to be told their position now; to be asked about every 0.5 s."""
        now, works = self._clock(), self._present()
        places: list[Place] = []
        before = Share(0.0, 0.0)
        if any(work.started is None for work in works):
            for work in self._forecast.order(works, now):
                if work.started is None:
                    wait = admission.spend([before], is_overlapping=self._is_overlapping)
                    places.append(Place(work, len(places), wait))
                before += self._forecast.claim(work).share
        return self._positions.due(places, now)

    def close(self, seconds: float = 5.0) -> bool:
        """End the threads at the next boundary; what is left fails with Draining.

        Waits so long at most, never for a thread that hangs. Whether all have ended.
        """
        until = time.monotonic() + seconds
        self._queue.close()
        if self._watchdog is not None:
            self._watchdog.stop()
        ended = [worker.join(max(0.0, until - time.monotonic())) for worker in self._workers]
        self._fail_all(lambda work: Draining())
        return all(ended)

    def _ended(self, work: Work, error: KleinError | None) -> None:
        if work.deadline is None:
            return
        if error is None:
            encoding = self._forecast.cost.lines["encode"].seconds(work.demand.output_megapixels)
            self._safety.observe(is_met=self._clock() + encoding <= work.deadline)
        elif isinstance(error, DeadlinePassed):
            self._safety.observe(is_met=False)

    def _died(self, error: BaseException) -> None:
        """The accelerator is lost, or a thread hangs or has a defect: whatever is here fails."""
        if self._is_dead:
            return
        self._is_dead = True
        self._queue.close()
        self._fail_all(lambda work: Internal(f"the accelerator failed, request {work.request.request_id}"))
        self._outbox.died(error)

    def _fail_all(self, error: Callable[[Work], KleinError]) -> None:
        for work in self._queue.works():
            self._ending.failed(work, error(work))
