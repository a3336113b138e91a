"""A front: our servers in a process of Ray's, over a Backend that hands each request to a replica."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog
from ray.util import get_node_ip_address

from kleinserve.backend.backend import Backend, Load, Sink, State
from kleinserve.backend.ray.board import BOARD
from kleinserve.backend.ray.drawing import Drawing
from kleinserve.config import Config
from kleinserve.core import Admitted, ModelFacts, Priority, Request

log = structlog.get_logger()


class Server(Protocol):
    """Serves callers with a backend. `start` returns the lines that tell where."""

    async def start(self) -> list[str]: ...

    async def stop(self) -> int: ...


MakeServer = Callable[[Config, Backend], Awaitable[Server]]


class Front:
    """A deployment's class: one a node, with ports of its own, which Ray's proxies know nothing of."""

    async def __init__(self, config: Config, make: MakeServer, replicas: Any):  # type: ignore[misc]  # Ray awaits it
        if config.port and not config.is_loopback:
            address = config.model_copy(update={"host": get_node_ip_address()}).address(config.port)
            config = config.model_copy(update={"advertise": address})
        replicas._init(_run_router_in_separate_loop=False)
        handle = replicas.options(_by_reference=False)
        facts = await handle.facts.remote()  # waits for the first replica
        self._server = await make(config, Remote(handle, facts))
        self._lines = await self._server.start()
        for line in self._lines:
            log.info(line)

    def lines(self) -> list[str]:
        return self._lines

    async def __del__(self) -> None:
        await self._server.stop()


class Remote:
    """A Backend whose images are made by replicas. On the event loop."""

    def __init__(self, handle: Any, facts: ModelFacts):
        self._handle, self._facts = handle, facts
        self._drawings: dict[str, Drawing] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    async def start(self, on_state: Callable[[State], None]) -> None:
        """A replica is there: it made its warm-up images before Ray said so."""
        on_state(State.READY)

    async def submit(self, request: Request, seconds_left: float | None, sink: Sink) -> Admitted:
        drawing = Drawing(self._handle, request, seconds_left, sink)
        try:
            admitted = await drawing.begin()
        except BaseException:
            BOARD.forget(request.request_id)
            raise
        self._drawings[request.request_id] = drawing
        following = self._spawn(drawing.follow())
        self._following.add(following)
        following.add_done_callback(lambda task: self._forget(request.request_id, task))
        return admitted

    def cancel(self, request_id: str) -> None:
        if (drawing := self._drawings.get(request_id)) is not None:
            self._spawn(drawing.cancel())

    def change(self, request_id: str, seconds_left: float | None, priority: Priority) -> None:
        if (drawing := self._drawings.get(request_id)) is not None:
            self._spawn(drawing.change(seconds_left, priority))

    def load(self) -> Load:
        """Of the replica that has the least to do; of requests only this front's."""
        running = sum(drawing.is_running for drawing in self._drawings.values())
        return Load(BOARD.busy_seconds, BOARD.wait_seconds, len(self._drawings) - running, running)

    async def drain(self, grace_seconds: float) -> None:
        following = set(self._following)
        if following:
            await asyncio.wait(following, timeout=grace_seconds)
        for task in following:
            task.cancel()

    def _forget(self, request_id: str, following: "asyncio.Task[None]") -> None:
        self._drawings.pop(request_id, None)
        self._following.discard(following)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
