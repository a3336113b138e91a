"""The one thread that writes: whatever waits goes into one transaction. Knows no table.

Each piece of work runs inside the transaction of all that waited with it, so one wait for the disk (2 to 5 ms) serves
them all; nothing is delayed to gather more. While the database refuses, the thread keeps what is not yet too old and
tries again until it works.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from kleinserve.errors import LedgerUnavailable
from kleinserve.usage.database import reason

T = TypeVar("T")
Work = Callable[[Connection], T]
log = structlog.get_logger()

WAITERS_MAX = 20_000  # more are refused
TURN_SECONDS = 0.05  # of a transaction; then others who share the database have their turn, and what is left the next
TOGETHER_MAX = 512  # taken from what waits
NOTES_TOGETHER_MAX = 64  # notes taken after those: a flood of refusals must not delay a delivery
LAST_SECONDS = 1.0  # for the transaction that is under way when closing has taken too long
RETRY_SECONDS = (0.05, 1.0)  # the first and the longest pause between two tries


class Declined(Exception):
    """Raised by work that has written nothing: the transaction goes on with the others."""


class _Late(Exception):
    """What somebody no longer waits for was about to be committed."""


class _Write:
    """A piece of work on its way. `deadline`: when nobody waits for it any more; inf: it is tried until it is done."""

    def __init__(self, work: Work[Any], deadline: float):
        self.work, self.deadline = work, deadline
        self.future: Future[Any] = Future()

    def begin(self) -> bool:
        """From here on it cannot be withdrawn; False: it has been."""
        return self.future.running() or (not self.future.done() and self.future.set_running_or_notify_cancel())

    def end(self, outcome: object) -> None:
        if self.future.done():  # withdrawn
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Writer:
    """Runs work in transactions, one after the other. `on_up` is called from any thread, when `is_up` changes."""

    def __init__(
        self,
        engine: Engine,
        *,
        begin: Work[object],
        probe: Work[object],
        timeout_seconds: float,
        notes_max: int,
        on_up: Callable[[bool], None],
    ):
        self._engine, self._begin, self._probe = engine, begin, probe
        self._timeout, self._notes_max, self._on_up = timeout_seconds, notes_max, on_up
        self._connection: Connection | None = None
        self._is_proven = False  # whether this connection has carried a transaction
        self._writes: deque[_Write] = deque()
        self._notes: deque[_Write] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._close_at = math.inf
        self._beat: tuple[float, Work[object]] | None = None
        self._beat_at = math.inf
        self._state = threading.Lock()
        self._end: Future[None] = Future()
        self.is_up = True
        on_up(True)
        threading.Thread(target=self._run, name="ledger-writer", daemon=True).start()

    async def run(self, work: Work[T], unheard: Callable[[T], None] = lambda result: None) -> T:
        """The result of `work`, once its transaction is durable. Work may run again after a transaction that failed.

        Raises: LedgerUnavailable, within the timeout: what had not come to its COMMIT never happens, what had may
        happen yet. What is posted afterwards comes after it. `unheard` is called, from any thread, with the result of
        work that is known to have happened although nobody waits for it any more.
        """
        write = _Write(work, time.monotonic() + self._timeout)
        if not self._add(self._writes, write, WAITERS_MAX):
            raise LedgerUnavailable
        try:
            return await asyncio.wait_for(asyncio.wrap_future(write.future), self._timeout)
        except TimeoutError:
            _when_done(write.future, unheard)
            self._tell(is_up=False)
            self.post(self._probe)  # to be told when it is over
            raise LedgerUnavailable from None
        except asyncio.CancelledError:
            _when_done(write.future, unheard)
            raise

    def post(self, work: Work[T], done: Callable[[T], None] = lambda result: None) -> None:
        """Do `work` after what waits already, without anybody waiting; while the database is down it is kept.

        `done` is called, from any thread, with the result, once its transaction is durable.
        """
        write = _Write(work, math.inf)
        _when_done(write.future, done)
        self._add(self._writes, write, None)

    def note(self, work: Work[object]) -> Future[object] | None:
        """Do `work` when there is room beside what is waited for; None: too much waits already."""
        write = _Write(work, math.inf)
        return write.future if self._add(self._notes, write, self._notes_max) else None

    def every(self, seconds: float, work: Work[object]) -> None:
        """Do `work` now and every `seconds`."""
        with self._wake:
            self._beat, self._beat_at = (seconds, work), 0.0
            self._wake.notify()

    async def close(self) -> bool:
        """Write what waits, as far as that is possible within the timeout; whether the thread has ended."""
        with self._wake:
            self._is_closing, self._close_at = True, time.monotonic() + self._timeout
            self._wake.notify()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._end)), self._timeout + LAST_SECONDS)
        return self._end.done()

    def _add(self, queue: deque[_Write], write: _Write, waiting_max: int | None) -> bool:
        with self._wake:
            if self._is_closing or (waiting_max is not None and len(queue) >= waiting_max):
                return False
            queue.append(write)
            self._wake.notify()
        return True

    def _tell(self, *, is_up: bool) -> None:
        with self._state:
            if self.is_up != is_up:
                self.is_up = is_up
                self._on_up(is_up)
                _log("ledger", is_up=is_up)

    # What follows runs on the thread.

    def _run(self) -> None:
        kept: list[_Write] = []
        pause = 0.0
        while not (pause and self._is_closing) and time.monotonic() < self._close_at:
            taken = self._take(pause, len(kept))  # after the pause: nobody waits any more for what is late then
            batch = _without_late(kept) + taken
            if not batch and self._is_closing:
                break
            if batch or pause:
                kept, pause = self._try(batch or [_Write(self._probe, math.inf)], pause)
        left = [write for write in (*kept, *self._writes, *self._notes) if write.begin()]
        for write in left:
            write.end(LedgerUnavailable())
        if left:
            _log("ledger_closed", unwritten=len(left))
        self._disconnect()
        self._engine.dispose()
        self._end.set_result(None)

    def _take(self, pause: float, kept: int) -> list[_Write]:
        """What waits, or comes next; after a failure, when `pause` has passed; maybe nothing. `kept`: what is left."""
        with self._wake:
            if pause:
                self._wake.wait_for(lambda: self._is_closing, pause)
            elif not (kept or self._writes or self._notes or self._is_closing):
                self._wake.wait(min(max(0.0, self._beat_at - time.monotonic()), threading.TIMEOUT_MAX))
            taken = [self._writes.popleft() for _ in range(min(len(self._writes), TOGETHER_MAX - kept))]
            if not kept:
                taken += [self._notes.popleft() for _ in range(min(len(self._notes), NOTES_TOGETHER_MAX))]
            if self._beat and time.monotonic() >= self._beat_at:
                seconds, work = self._beat
                self._beat_at = time.monotonic() + seconds
                taken.append(_Write(work, self._beat_at))
        return taken

    def _try(self, batch: list[_Write], pause: float) -> tuple[list[_Write], float]:
        """Do `batch`. What is left of it, and the pause before it is tried again, 0 unless the database failed."""
        try:
            outcomes = self._transact(batch)
        except _Late:
            return _without_late(batch), 0.0
        except Exception as error:
            if not _is_databases(error):
                return self._alone(batch, error)
            is_stale = self._is_proven and isinstance(error, DBAPIError) and error.connection_invalidated
            self._disconnect()
            if is_stale:  # the database was restarted, or a proxy closed what was idle: a new connection may do
                return batch, 0.0
            self._tell(is_up=False)
            _log("ledger_failed", error=reason(error))
            return _without_late(batch), min(max(RETRY_SECONDS[0], pause * 2), RETRY_SECONDS[1])
        self._is_proven = True
        self._tell(is_up=True)
        for write, outcome in zip(batch, outcomes, strict=False):
            write.end(outcome)
        return batch[len(outcomes) :], 0.0

    def _alone(self, batch: list[_Write], error: Exception) -> tuple[list[_Write], float]:
        """One piece of `batch` is itself at fault: each in a transaction of its own, and that one fails."""
        if len(batch) == 1:
            _log("ledger_refused", error=reason(error))
            unavailable = LedgerUnavailable()
            unavailable.__cause__ = error
            batch[0].end(unavailable)  # it has begun: what it did has raised
            return [], 0.0
        for index, write in enumerate(batch):
            kept, pause = self._try([write], 0.0)  # one is done or fails: nothing is left but by the database's fault
            if pause:
                return kept + batch[index + 1 :], pause
        return [], 0.0

    def _transact(self, batch: list[_Write]) -> list[object]:
        """One transaction with the first of `batch`, as many as fit into a turn; what each came to."""
        if self._connection is None:
            self._connection = self._engine.connect()
        outcomes: list[object] = []
        with self._connection.begin():
            self._begin(self._connection)
            until = time.monotonic() + TURN_SECONDS
            while len(outcomes) < len(batch) and (not outcomes or time.monotonic() < until):
                outcomes.append(_outcome(batch[len(outcomes)], self._connection))
            if len(_without_late(batch[: len(outcomes)])) < len(outcomes):
                raise _Late  # once COMMIT is sent nothing can be withdrawn
        return outcomes

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection, self._is_proven = None, False


def _outcome(write: _Write, connection: Connection) -> object:
    try:
        return write.work(connection) if write.begin() else None
    except Declined as declined:
        return declined


def _when_done(future: Future[Any], told: Callable[[Any], None]) -> None:
    """Call `told` with the result, if there ever is one."""

    def ended(future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            told(future.result())

    future.add_done_callback(ended)


def _log(what: str, **facts: object) -> None:
    """The log may be on the very disk that is full: that must not end the thread that waits for room."""
    with contextlib.suppress(OSError, ValueError):
        log.warning(what, **facts)


def _is_databases(error: Exception) -> bool:
    """Whether the database is at fault, rather than what it was asked to write."""
    return isinstance(error, DBAPIError) and not isinstance(error, IntegrityError | DataError)


def _without_late(batch: list[_Write]) -> list[_Write]:
    """What somebody may still wait for; the others are told."""
    now = time.monotonic()
    for write in batch:
        if write.deadline <= now and write.begin():
            write.end(LedgerUnavailable())
    return [write for write in batch if write.deadline > now]
