"""Threads that read, so that a slow or hanging database keeps neither the event loop nor the end of the process."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from kleinserve.errors import LedgerUnavailable

T = TypeVar("T")
THREADS = 3  # a long sum beside two listings
LAST_SECONDS = 1.0  # for what is read while closing


class Reader:
    """Runs reads, each in a transaction that sees one state of the database."""

    def __init__(self, engine: Engine, timeout_seconds: float):
        self._engine, self._timeout = engine, timeout_seconds
        self._threads = THREADS
        self._end: Future[None] = Future()
        self._lock = threading.Lock()
        self._reads: queue.SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]] | None] = queue.SimpleQueue()
        for number in range(THREADS):
            threading.Thread(target=self._run, name=f"ledger-reader-{number}", daemon=True).start()

    async def run(self, read: Callable[[Connection], T]) -> T:
        """What `read` returns or raises. Raises: LedgerUnavailable, within the timeout."""
        future: Future[T] = Future()
        self._reads.put((read, future))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except (TimeoutError, SQLAlchemyError) as error:
            raise LedgerUnavailable("usage cannot be read now") from error

    async def close(self) -> None:
        """End the threads once they have done what waits, for a second at most. The last one closes the connections."""
        for _ in range(THREADS):
            self._reads.put(None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._end)), LAST_SECONDS)

    def _run(self) -> None:
        while (item := self._reads.get()) is not None:
            read, future = item
            if future.set_running_or_notify_cancel():
                self._do(read, future)
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._engine.dispose()
                self._end.set_result(None)

    def _do(self, read: Callable[[Connection], T], future: Future[T]) -> None:
        try:
            with self._engine.begin() as connection:
                result = read(connection)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)
