"""A replica: an engine with its scheduler in a process of Ray's, and what it tells a front of each request."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from ray import serve

from kleinserve.backend.backend import Backend, State
from kleinserve.backend.ray.scaling import BUSY_SECONDS
from kleinserve.backend.ray.told import Box, Told
from kleinserve.config import Config
from kleinserve.core import Admitted, BackendEvent, ModelFacts, Priority, Request
from kleinserve.errors import KleinError

DRAIN_SECONDS = 1.0  # Ray has waited for all streams before

log = structlog.get_logger()
MakeBackend = Callable[[Config], Awaitable[Backend]]


class Replica:
    """A deployment's class. Ray ends it once all its streams have ended."""

    async def __init__(self, config: Config, make: MakeBackend):  # type: ignore[misc]  # Ray awaits it
        self._name = serve.get_replica_context().replica_id.unique_id
        self._backend = await make(config)
        await self._backend.start(self._on_state)

    def _on_state(self, state: State) -> None:
        """Without its accelerator the process ends, before anyone is told: fronts then try elsewhere, and Ray starts a
        new one.
        """
        if state is State.DEAD:
            log.critical("the replica ends: it can make no image any more")
            os._exit(1)

    def facts(self) -> ModelFacts:
        return self._backend.facts

    async def draw(self, request: Request, seconds_left: float | None) -> AsyncIterator[Told]:
        """Make the image; when the stream is closed before its end, the request is cancelled."""
        box = Box()
        try:
            yield self._told()
            try:
                admitted = await self._backend.submit(request, seconds_left, box.put)
            except KleinError as error:
                yield self._told(error)
                return
            yield self._told(admitted)
            while not box.is_last:
                yield self._told(*await box.take())
        finally:
            self._backend.cancel(request.request_id)  # nothing where it has ended

    def _told(self, *words: Admitted | KleinError | BackendEvent) -> Told:
        return Told(self._name, self._backend.load(), words)

    def cancel(self, request_id: str) -> None:
        self._backend.cancel(request_id)

    def change(self, request_id: str, seconds_left: float | None, priority: Priority) -> None:
        self._backend.change(request_id, seconds_left, priority)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray asks for them by this name."""
        return {BUSY_SECONDS: self._backend.load().busy_seconds}

    async def __del__(self) -> None:
        await self._backend.drain(DRAIN_SECONDS)
