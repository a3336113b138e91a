"""The ledger in a database: SQLite in a file of its own, or PostgreSQL, by the same statements."""

import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial

from sqlalchemy import Connection

from kleinserve.core import UsageRecord
from kleinserve.usage import database, records, schema
from kleinserve.usage.ledger import BadLedger, UsageTotal
from kleinserve.usage.reader import Reader
from kleinserve.usage.writer import Writer

READ_SECONDS = 30.0  # a month of ten million records takes less than one
NOTES_MAX = 1000


class SqlLedger:
    """A `Ledger`. It calls `on_commit`, on the event loop, with the seconds that a commit took; and from any thread
    `on_up` at first and whenever `is_up` changes, and `on_dropped` for each note that found no room or failed.
    """

    def __init__(
        self,
        ledger: str,
        *,
        timeout_seconds: float = 5.0,
        on_commit: Callable[[float], None] = lambda seconds: None,
        on_up: Callable[[bool], None] = lambda is_up: None,
        on_dropped: Callable[[], None] = lambda: None,
    ):
        """Open `--ledger`: `sqlite` or a URL. May take seconds: a migration, a slow server. Raises: BadLedger."""
        self._on_commit, self._on_dropped = on_commit, on_dropped
        url = database.location(ledger)
        self._owner = database.FileOwner(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        engine = database.connect(url, timeout_seconds / 2, "write")
        try:
            database.check(engine)
        except BadLedger:
            engine.dispose()
            if self._owner:
                self._owner.release()
            raise
        self.writer = Writer(
            engine,
            begin=records.in_turn,
            probe=records.probe,
            timeout_seconds=timeout_seconds,
            notes_max=NOTES_MAX,
            on_up=on_up,
        )
        self.is_shared = url.get_backend_name() == "postgresql"  # by other servers
        self._reader = Reader(database.connect(url, READ_SECONDS, "read"), READ_SECONDS)

    @property
    def is_up(self) -> bool:
        """Whether the last transaction worked; while it did not, one is tried every second at least."""
        return self.writer.is_up

    async def commit(self, *new: UsageRecord) -> None:
        """As the protocol says. Cancelled while it waits: they are written or not; shield it if that matters."""
        await self.timed(partial(records.add_all, new=new))

    def keep(self, record: UsageRecord, instead_of: str = "") -> None:
        """As the protocol says."""
        self.writer.post(partial(records.replace, record_id=instead_of, record=record))

    async def timed(self, work: Callable[[Connection], None]) -> None:
        """Run `work` with the writer, as a commit that somebody waits for."""
        begin = time.perf_counter()
        await self.writer.run(work)
        self._on_commit(time.perf_counter() - begin)

    def note(self, record: UsageRecord) -> None:
        """As the protocol says."""
        future = self.writer.note(partial(records.add, record=record))
        if future is None:
            self._on_dropped()
        else:
            future.add_done_callback(self._noted)

    def _noted(self, future: Future[object]) -> None:
        if future.exception() is not None:
            self._on_dropped()

    async def totals(self, start_microseconds: int, end_microseconds: int, caller: str | None) -> list[UsageTotal]:
        """As the protocol says; `records.totals` says what pruning does to them."""
        return await self._reader.run(lambda c: records.totals(c, start_microseconds, end_microseconds, caller))

    async def records(
        self, start_microseconds: int, end_microseconds: int, caller: str | None, after_record_id: str
    ) -> AsyncIterator[UsageRecord]:
        """As the protocol says; of records that are committed meanwhile, some."""
        bounds = start_microseconds, end_microseconds, caller
        first, last = await self._reader.run(lambda c: records.positions(c, *bounds))
        if after_record_id:
            after = await self._reader.run(lambda c: records.position(c, after_record_id, caller))
            first = max(first, after + 1)
        while rows := await self._reader.run(partial(records.page, bounds=bounds, first=first, last=last)):
            for row in rows:
                yield schema.record(row)
            first = rows[-1]["position"] + 1

    async def close(self) -> None:
        """As the protocol says, within the timeout."""
        has_ended = await self.writer.close()
        await self._reader.close()
        if self._owner and has_ended:  # else the thread may write yet: the file is held until the process ends
            self._owner.release()
