"""One image being made, as a blocking and as an asynchronous stream. The exchange knows what events mean."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

import grpc

from kleinclient.errors import BrokenStream
from kleinclient.events import Accepted, Event, Image, Preview
from kleinclient.exchange import Exchange


class Stream:
    """What both streams have said."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange

    @property
    def accepted(self) -> Accepted | None:
        """The resolved request: its seed, size and steps. None until the server has said it."""
        return self._exchange.accepted

    @property
    def request_id(self) -> str:
        """The server's name for the request, "" until it has said it."""
        return self._exchange.request_id

    @property
    def idempotency_key(self) -> str:
        """The key of the request, given or drawn: `attach` and `cancel` take it. "" without one."""
        return self._exchange.ask.key


class ImageStream(Stream):
    """One image being made: iterate over its events, or over its `previews()`, and take its `result()`.

    The request is under way from the beginning, before anything is read. Leaving an iteration early, `close()` (from
    any thread), and leaving a `with` block cancel it. All raise KleinError; an ended stream keeps its image or error.

    A connection that breaks is made anew and the request taken up by its key: `Retrying` says so. What was told is not
    told again, unless the server had to draw another picture (it says `Accepted` anew, with another seed).
    """

    def __init__(self, open_call: Callable[[Exchange], Any], exchange: Exchange):
        super().__init__(exchange)
        self._is_closed = threading.Event()
        self._open_call = open_call
        self._call = open_call(exchange)

    def __iter__(self) -> Iterator[Event]:
        """Every event as it comes; the last one is the Image."""
        try:
            while not self._exchange.has_ended:
                yield from self._attempt()
            self._exchange.image()
        finally:
            self.close()

    def previews(self) -> Iterator[Preview]:
        """The previews alone, to the end of the stream."""
        for event in self:
            if isinstance(event, Preview):
                yield event

    def result(self) -> Image:
        """The image, as soon as it is complete; whatever comes before is passed over."""
        for _ in self:
            pass
        return self._exchange.image()

    def close(self) -> None:
        """Cancel the request, unless it has ended. Safe to call twice."""
        self._exchange.leave()
        self._is_closed.set()
        self._call.cancel()

    def _attempt(self) -> Iterator[Event]:
        """One attempt's events; after one that may be repeated, the next is under way."""
        try:
            for message in self._call:
                if event := self._exchange.receive(message):
                    yield event
            yield self._exchange.finish()
            return
        except (grpc.RpcError, BrokenStream) as failure:
            self._call.cancel()
            retrying = self._exchange.fail(failure)
        if retrying:
            yield retrying
            self._is_closed.wait(retrying.delay)
        if not self._is_closed.is_set():
            self._call = self._open_call(self._exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncImageStream(Stream):
    """As ImageStream, for `async for` and `async with`; awaiting the stream itself gives its image.

    Made outside an event loop, the request is under way when the stream is first read.
    """

    def __init__(self, open_call: Callable[[Exchange], Awaitable[Any]], exchange: Exchange):
        super().__init__(exchange)
        self._is_closed = asyncio.Event()
        self._open_call = open_call
        self._opening: asyncio.Future[Any] | None = None
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            self._open()

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        """Every event as it comes; the last one is the Image."""
        try:
            while not self._exchange.has_ended:
                async with aclosing(self._attempt()) as events:
                    async for event in events:
                        yield event
            self._exchange.image()
        finally:
            self.close()

    async def previews(self) -> AsyncGenerator[Preview, None]:
        """The previews alone, to the end of the stream."""
        async with aclosing(self.__aiter__()) as events:
            async for event in events:
                if isinstance(event, Preview):
                    yield event

    async def result(self) -> Image:
        """The image, as soon as it is complete; whatever comes before is passed over."""
        async for _ in self:
            pass
        return self._exchange.image()

    def __await__(self) -> Generator[Any, None, Image]:
        return self.result().__await__()

    def close(self) -> None:
        """Cancel the request, unless it has ended; who waits for it gets Cancelled. Safe to call twice."""
        self._exchange.leave()
        self._is_closed.set()
        self._cancel_call()

    async def _attempt(self) -> AsyncGenerator[Event, None]:
        """One attempt's events; after one that may be repeated, the next is under way."""
        try:
            async for message in await (self._opening or self._open()):
                if event := self._exchange.receive(message):
                    yield event
            yield self._exchange.finish()
            return
        except (grpc.RpcError, BrokenStream) as failure:
            self._cancel_call()
            retrying = self._exchange.fail(failure)
        except asyncio.CancelledError:
            if self._is_closed.is_set() and not is_being_cancelled():
                return  # close() cancelled the call; the task that reads it goes on
            raise
        if retrying:
            yield retrying
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closed.wait(), retrying.delay)
        if not self._is_closed.is_set():
            self._open()

    def _open(self) -> asyncio.Future[Any]:
        self._opening = asyncio.ensure_future(self._open_call(self._exchange))
        return self._opening

    def _cancel_call(self) -> None:
        opening = self._opening
        if opening is None or opening.cancelled():
            return
        if not opening.done():
            opening.cancel()
        elif opening.exception() is None:
            opening.result().cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_being_cancelled() -> bool:
    """Whether somebody cancels the present task itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
