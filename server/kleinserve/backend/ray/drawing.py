"""One request at a replica, and once more at another when that one is lost. On the front's event loop."""

import asyncio
from dataclasses import replace
from typing import Any

import structlog

from kleinserve.backend.backend import Sink
from kleinserve.backend.ray.board import BOARD
from kleinserve.backend.ray.told import Told
from kleinserve.core import (
    Admitted,
    BackendEvent,
    Failed,
    Finished,
    Preview,
    Priority,
    Progress,
    Queued,
    Request,
    Spent,
    Started,
)
from kleinserve.errors import Cancelled, Draining, KleinError, NotReady

ANSWER_SECONDS = 5.0  # for a replica to say that it is there; without one Ray's call would wait for ever
RETELL_SECONDS = 10.0  # of silence, then a caller is told again how far it is
SILENT_SECONDS = 30.0  # a replica tells of each request more often: one that does not hangs, or its machine is gone

log = structlog.get_logger()


class _Lost(Exception):
    """The replica has died, is about to end, or does not answer."""


class Drawing:
    """`begin`, then `follow` to the end. The seed is fixed, so that a second replica makes the same image."""

    def __init__(self, handle: Any, request: Request, seconds_left: float | None, sink: Sink):
        self._handle, self._request, self._sink = handle, request, sink
        self._draw = handle.options(stream=True).draw
        self._loop = asyncio.get_running_loop()
        self._began = self._spoke = self._loop.time()
        self._deadline = None if seconds_left is None else self._began + seconds_left
        self._stream: Any = None
        self._told: dict[type[BackendEvent], int] = {}  # how far the caller knows of it: the newest step of each kind
        self._known: dict[type[BackendEvent], int] = {}  # the same when the first replica was lost
        self._is_second = self._is_cancelled = self._is_over = False

    async def begin(self) -> Admitted:
        """Have a replica take it. Raises: what refuses it; NotReady where two replicas were lost."""
        try:
            return await self._open()
        except _Lost:
            return await self._again()

    @property
    def is_running(self) -> bool:
        return Started in self._told

    async def follow(self) -> None:
        """Tell the sink all that comes, up to the last word; where this is cancelled, that it was drained."""
        try:
            while not self._is_over:
                try:
                    for word in (await self._next()).words:
                        self._tell(word)
                except _Lost:
                    await self._again()
                    if self._is_cancelled:  # meanwhile
                        await self.cancel()
        except KleinError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self._stream.cancel()
            self._fail(Draining())
        except Exception:
            log.exception("a drawing failed", request_id=self._request.request_id)
            self._stream.cancel()
            self._fail(NotReady("the request was lost"))
        finally:
            BOARD.forget(self._request.request_id)

    async def cancel(self) -> None:
        """Have the replica end it, so that its last word tells what was spent; without an answer, close the stream."""
        self._is_cancelled = True
        try:
            await asyncio.wait_for(self._handle.cancel.remote(self._request.request_id), ANSWER_SECONDS)
        except Exception as error:
            log.info("a stream is closed to cancel it", request_id=self._request.request_id, why=type(error).__name__)
            if not self._is_over:
                self._stream.cancel()

    async def change(self, seconds_left: float | None, priority: Priority) -> None:
        """These are its deadline and its priority now."""
        self._deadline = None if seconds_left is None else self._loop.time() + seconds_left
        self._request = replace(self._request, options=replace(self._request.options, priority=priority))
        try:
            told = self._handle.change.remote(self._request.request_id, seconds_left, priority)
            await asyncio.wait_for(told, ANSWER_SECONDS)
        except Exception as error:
            log.warning("a change did not arrive", request_id=self._request.request_id, why=type(error).__name__)

    async def _open(self) -> Admitted:
        left = None if self._deadline is None else self._deadline - self._loop.time()
        self._stream = self._draw.remote(self._request, left)
        try:
            await asyncio.wait_for(self._next(), ANSWER_SECONDS)
            (word,) = (await self._next()).words
        except TimeoutError:
            self._stream.cancel()
            raise _Lost from None
        except BaseException:
            self._stream.cancel()
            raise
        if isinstance(word, Draining):
            raise _Lost
        if isinstance(word, KleinError):
            raise word
        assert isinstance(word, Admitted)
        BOARD.learn(self._request, word.estimated_duration)
        return word

    async def _next(self) -> Told:
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                told: Told = await anext(self._stream)
        except Exception as error:  # of a dead actor, of a broken stream, or its end before the last word
            raise _Lost from error
        BOARD.hear(self._request.request_id, told.replica, told.load)
        return told

    async def _again(self) -> Admitted:
        """Have another replica make it, once."""
        request_id = self._request.request_id
        self._stream.cancel()  # it may only hang
        BOARD.lose(request_id)
        if self._is_cancelled:
            raise Cancelled("cancelled")
        if self._is_second:
            raise NotReady("the replicas that had the request were lost")
        self._is_second = True
        self._known = {kind: step for kind, step in self._told.items() if kind is not Queued}
        log.warning("a replica is lost, another one draws", request_id=request_id, step=self._told.get(Progress, 0))
        try:
            return await self._open()
        except _Lost:
            raise NotReady("the replicas that had the request were lost") from None

    def _tell(self, word: Admitted | KleinError | BackendEvent) -> None:
        assert not isinstance(word, Admitted | KleinError)
        if isinstance(word, Failed) and isinstance(word.error, Draining) and not self._is_second:
            raise _Lost
        if self._is_known(word):
            if isinstance(word, Progress) and self._loop.time() - self._spoke >= RETELL_SECONDS:
                self._say(replace(word, step=self._known[Progress]))
            return
        if isinstance(word, Progress | Preview):
            self._told[type(word)] = word.step
        elif isinstance(word, Started):
            self._told[Started] = 0
        self._say(word)

    def _is_known(self, word: BackendEvent) -> bool:
        """Whether the caller heard it from the replica that was lost."""
        if isinstance(word, Progress | Preview):
            return word.step <= self._known.get(type(word), 0)
        return isinstance(word, Queued | Started) and Started in self._known

    def _say(self, word: BackendEvent) -> None:
        self._spoke = self._loop.time()
        self._is_over = isinstance(word, Finished | Failed)
        self._sink(word)

    def _fail(self, error: KleinError) -> None:
        """The last word, of a request whose replica says nothing any more."""
        if not self._is_over:
            steps = self._told.get(Progress, 0)
            self._say(Failed(error, Spent(steps_run=steps, seconds=self._loop.time() - self._began)))
