"""Requests, and replicas that say what a test tells them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from kleinserve.backend.backend import Load
from kleinserve.backend.ray.told import Told
from kleinserve.core import Admitted, BackendEvent, Operation, Options, Priority, Request, Size
from kleinserve.errors import KleinError

IDLE = Load(0.0, 0.0, 0, 0)
ADMITTED = Admitted(3, False, 0.0, 1.0)
Word = Admitted | KleinError | BackendEvent | Exception | type[BaseException]


def asked(request_id: str) -> Request:
    return Request(request_id, Operation.GENERATE, "a circle", (), Size(64, 64), Options(7, 4, 1.0))


class Stream:
    """Says each word by itself, after it has said that it is there; raises what is an exception; then waits."""

    def __init__(self, name: str, words: list[Word]):
        self._words, self.is_cancelled = self._said(name, words), asyncio.Event()

    async def _said(self, name: str, words: list[Word]) -> AsyncIterator[Told]:
        yield Told(name, IDLE)
        for word in words:
            if isinstance(word, Exception) and not isinstance(word, KleinError):
                raise word
            yield Told(name, IDLE, (word,))  # type: ignore[arg-type]
        await self.is_cancelled.wait()
        raise ConnectionError("cancelled")

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Told:
        return await anext(self._words)

    def cancel(self) -> None:
        self.is_cancelled.set()


class _Method:
    def __init__(self, call: Callable[..., object]):
        self.remote = call


class Handle:
    """A handle to replicas, each of which gets one request and says these words; `drawn`: those, with their seconds."""

    def __init__(self, *scripts: list[Word]):
        self._scripts = [Stream(f"replica {number}", words) for number, words in enumerate(scripts)]
        self.streams: list[Stream] = []
        self.drawn: list[tuple[Request, float | None]] = []
        self.said: list[tuple[object, ...]] = []
        self.draw, self.cancel, self.change = _Method(self._draw), _Method(self._say), _Method(self._say)
        self.on_cancel: Callable[[], Awaitable[None]] | None = None

    def options(self, **_: object) -> "Handle":
        return self

    def _draw(self, request: Request, seconds_left: float | None) -> Stream:
        self.drawn.append((request, seconds_left))
        self.streams.append(self._scripts[len(self.streams)])
        return self.streams[-1]

    async def _say(self, *words: str | float | Priority | None) -> None:
        self.said.append(words)
        if self.on_cancel is not None:
            await self.on_cancel()
