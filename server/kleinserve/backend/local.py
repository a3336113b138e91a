"""The backend in this process: a scheduler with its engine, and the threads that encode what it draws."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from kleinserve.backend.backend import Load, Sink, State
from kleinserve.backend.encoding import Encoding
from kleinserve.config import Config
from kleinserve.core import (
    Admitted,
    BackendEvent,
    Failed,
    Finished,
    ModelFacts,
    Priority,
    Progress,
    Queued,
    Request,
    Started,
)
from kleinserve.errors import Draining, Internal, KleinError
from kleinserve.metrics import Metrics
from kleinserve.scheduler.engine import Engine
from kleinserve.scheduler.outbox import Outbox, Stepped
from kleinserve.scheduler.scheduler import Scheduler
from kleinserve.scheduler.work import Work

_LOOK_SECONDS = 0.5  # how often it is looked whether a position or a progress is due
_SOON_SECONDS = 0.025  # who starts within it has not waited
_PROGRESS_SECONDS = 10.0  # of silence, after which the progress is told again

log = structlog.get_logger()


class Local:
    """A Backend. Created on the running event loop; what the engine's threads hand out arrives there."""

    def __init__(self, engine: Engine, config: Config, metrics: Metrics):
        self._engine, self._config, self._metrics = engine, config, metrics
        self._loop = asyncio.get_running_loop()
        self._encoding = Encoding(engine.facts.name, config.codec_threads, metrics)
        self._scheduler = Scheduler(engine, config, metrics, self._outbox(), self._loop.time)
        self._works: dict[str, Work] = {}
        self._sinks: dict[Work, Sink] = {}
        self._told: dict[Work, float] = {}
        self._looked = 0.0
        self._looking: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._reminder: asyncio.Task[None] | None = None
        self._on_state: Callable[[State], None] = lambda state: None

    @property
    def facts(self) -> ModelFacts:
        return self._engine.facts

    async def start(self, on_state: Callable[[State], None]) -> None:
        """Make real warm-up images on the threads that will serve. Raises what the warm-up raised."""
        self._on_state = on_state
        await asyncio.to_thread(self._scheduler.start)
        self._reminder = self._loop.create_task(self._remind())
        on_state(State.READY)

    async def submit(self, request: Request, seconds_left: float | None, sink: Sink) -> Admitted:
        arrived = self._loop.time()
        render = await self._encoding.run(self._engine.render, request)
        deadline = None if seconds_left is None else arrived + seconds_left
        work, wait, duration = self._scheduler.submit(render, deadline, request.options.priority)
        self._idle.clear()
        self._works[request.request_id], self._sinks[work], self._told[work] = work, sink, self._loop.time()
        self._look_soon()
        return Admitted(render.prompt_tokens, render.is_truncated, wait, duration)

    def cancel(self, request_id: str) -> None:
        if (work := self._works.get(request_id)) is not None:
            self._scheduler.cancel(work)

    def change(self, request_id: str, seconds_left: float | None, priority: Priority) -> None:
        if (work := self._works.get(request_id)) is not None:
            deadline = None if seconds_left is None else self._loop.time() + seconds_left
            self._scheduler.change(work, deadline, priority)

    def load(self) -> Load:
        scheduler = self._scheduler
        return Load(scheduler.busy_seconds, scheduler.wait_seconds, scheduler.waiting, scheduler.running)

    async def drain(self, grace_seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        for work in list(self._sinks):
            self._failed(work, Draining())
        if self._reminder is not None:
            self._reminder.cancel()
        await asyncio.to_thread(self._scheduler.close)
        self._encoding.close()

    def _outbox(self) -> Outbox:
        """The engine's threads call these; each runs soon, on the event loop."""

        def soon(function: Callable[..., None]) -> Callable[..., None]:
            def hand(*arguments: Any) -> None:
                self._loop.call_soon_threadsafe(function, *arguments)

            return hand

        return Outbox(
            started=soon(self._started),
            stepped=soon(self._stepped),
            decoded=soon(self._decoded),
            failed=soon(self._failed),
            died=soon(self._died),
        )

    def _post(self, work: Work, event: BackendEvent) -> None:
        if (sink := self._sinks.get(work)) is not None:
            self._told[work] = self._loop.time()
            sink(event)

    def _started(self, works: Sequence[Work]) -> None:
        for work in works:
            self._post(work, Started((work.started or 0.0) - work.arrived))

    def _stepped(self, all_stepped: Sequence[Stepped]) -> None:
        for work, progress, drawn in all_stepped:
            self._post(work, progress)
            if drawn is not None and work in self._sinks:
                self._encoding.preview(work.request, drawn, progress, partial(self._post, work))

    def _decoded(self, work: Work) -> None:
        if work in self._sinks:
            self._loop.create_task(self._encode(work))

    async def _encode(self, work: Work) -> None:
        """The final file; the last preview goes first."""
        request = work.request
        try:
            image, seconds = await self._encoding.file(request, partial(self._engine.resolve, work.render))
        except KleinError as error:
            self._failed(work, error)
        except Exception:
            log.exception("encoding failed", request_id=request.request_id)
            self._failed(work, Internal(f"internal error, request {request.request_id}"))
        else:
            self._scheduler.encoded(work, seconds)
            self._last(work, Finished(image, work.spent(self._loop.time(), seconds)))

    def _failed(self, work: Work, error: KleinError) -> None:
        self._last(work, Failed(error, work.spent(self._loop.time())))

    def _last(self, work: Work, last: Finished | Failed) -> None:
        if (sink := self._sinks.pop(work, None)) is None:
            return
        self._works.pop(work.request.request_id, None)
        self._told.pop(work, None)
        self._encoding.forget(work.request.request_id)
        if not self._sinks:
            self._idle.set()
        sink(last)

    def _died(self, error: BaseException) -> None:
        """The accelerator is lost: every request ends, health says so, and the process exits for a new one to start."""
        log.error("the accelerator is lost", exc_info=error)
        for work in list(self._sinks):
            self._failed(work, Internal(f"the accelerator failed, request {work.request.request_id}"))
        self._on_state(State.DEAD)

    def _tell_positions(self) -> None:
        self._looked = self._loop.time()
        for place in self._scheduler.positions():
            self._post(place.work, Queued(place.position, place.wait_seconds))

    def _look_soon(self) -> None:
        """Someone new waits: tell the position soon, but look at all who wait a few times a second at most."""
        if self._looking is None or self._looking.when() <= self._loop.time():
            at = max(self._loop.time() + _SOON_SECONDS, self._looked + _LOOK_SECONDS / 2)
            self._looking = self._loop.call_at(at, self._tell_positions)

    async def _remind(self) -> None:
        """Tell positions at a bounded rate, and the progress to whoever has heard nothing for long."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._tell_positions()
                self._repeat_progress()
            except Exception:  # what is told now and then must not end for good
                log.exception("reminding failed")

    def _repeat_progress(self) -> None:
        now = self._loop.time()
        for work, told in list(self._told.items()):
            if work.started is not None and now - told >= _PROGRESS_SECONDS:
                render, left = work.render, self._scheduler.remaining(work)
                self._post(work, Progress(render.steps_done, render.total_steps, left))
