"""A database that hangs, dies, is locked or full: who waits is told, and all is well later (usage/writer.py)."""

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kleinserve.core import Outcome
from kleinserve.errors import LedgerUnavailable
from kleinserve.usage.sql import NOTES_MAX, SqlLedger

from tests.usage.postgres import Postgres
from tests.usage.slow import held
from tests.usage.some import record, rows

TIMEOUT_SECONDS = 1.0
TICK_SECONDS = 0.01


@asynccontextmanager
async def opened(url: str, **callbacks: Callable[..., None]) -> AsyncIterator[SqlLedger]:
    ledger = SqlLedger(url, timeout_seconds=TIMEOUT_SECONDS, **callbacks)
    try:
        yield ledger
    finally:
        await ledger.close()


async def up(ledger: SqlLedger) -> None:
    """Return when the ledger is up again; pytest's timeout says that it never is."""
    while not ledger.is_up:  # noqa: ASYNC110 - it is a fact, not an event
        await asyncio.sleep(TICK_SECONDS)


@contextlib.contextmanager
def hanging(postgres: Postgres) -> Iterator[None]:
    postgres.suspend()
    try:
        yield
    finally:
        postgres.resume()


@contextlib.contextmanager
def dead(postgres: Postgres) -> Iterator[None]:
    postgres.kill()
    try:
        yield
    finally:
        postgres.start()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte more fits on the small disk that `folder` is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65536, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    yield
    filler.unlink()


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """No file of this process can grow, which SQLite sees as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of a few MiB; None where this user may not mount one, which takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def check_outage(url: str, outage: contextlib.AbstractContextManager[None]) -> None:
    """A commit fails in time and the event loop goes on; then the ledger recovers, and no record is there twice."""
    ups: list[bool] = []
    async with opened(url, on_up=ups.append) as ledger:
        before, during, after = record(), record(), record()
        await ledger.commit(before)
        with outage:
            commit = asyncio.create_task(ledger.commit(during))
            ticks = 0
            while not commit.done():
                await asyncio.sleep(TICK_SECONDS)
                ticks += 1
            with pytest.raises(LedgerUnavailable):
                await commit
            assert ticks > 0.2 * TIMEOUT_SECONDS / TICK_SECONDS, "the loop stood still"
            assert not ledger.is_up
        await up(ledger)
        await ledger.commit(during)  # it may have been written
        await ledger.commit(after)
        there = [each.record_id async for each in ledger.records(0, 2**62, None, "")]
    assert sorted(there) == sorted(each.record_id for each in (before, during, after))
    assert ups[:2] == [True, False]
    assert ups[-1]


async def test_postgresql_hangs(postgres: Postgres) -> None:
    """PostgreSQL that stops answering: commits fail within the timeout, and work when it goes on."""
    await check_outage(postgres.database(), hanging(postgres))


async def test_postgresql_dies(postgres: Postgres) -> None:
    """PostgreSQL killed and started again: commits fail meanwhile, and work afterwards."""
    await check_outage(postgres.database(), dead(postgres))


async def test_postgresql_restarts_between_two_commits(postgres: Postgres) -> None:
    """A connection that died while nothing was written costs nobody his image: the commit is made on a new one, and
    the ledger was never down.
    """
    ups: list[bool] = []
    async with opened(postgres.database(), on_up=ups.append) as ledger:
        await ledger.commit(record())
        with dead(postgres):
            pass
        await ledger.commit(record())
    assert ups == [True]


async def test_sqlite_is_locked(tmp_path: Path) -> None:
    """A SQLite file that another program keeps locked: commits fail within the timeout, and work when it is free."""
    await check_outage(f"sqlite:///{tmp_path}/usage.db", locked(tmp_path / "usage.db"))


async def test_the_disk_is_full(small_disk: Path | None, tmp_path: Path) -> None:
    """No room: commits fail, and work when there is some again.

    A limit on file sizes, which SQLite sees as a full disk, and for whom may mount one (root) also a small disk that
    is full.
    """
    await check_outage(f"sqlite:///{tmp_path}/usage.db", limited())
    if small_disk:
        await check_outage(f"sqlite:///{small_disk}/usage.db", full(small_disk))


async def test_what_is_late_before_its_commit_is_rolled_back(url: str) -> None:
    """A commit that hangs before COMMIT is sent, and fails, never happens; what waits behind it does."""
    async with opened(url) as ledger:
        with held(ledger, "statement"):
            with pytest.raises(LedgerUnavailable):
                await ledger.commit(record())
            ledger.note(record(client_tag="noted"))
        await up(ledger)
    assert rows(url, "SELECT client_tag FROM record") == [("noted",)]


async def test_what_waits_behind_a_hanging_commit_is_withdrawn(postgres: Postgres) -> None:
    """A commit that failed before it was begun is never written: its image was not delivered and is not billed."""
    url = postgres.database()
    async with opened(url) as ledger:
        with hanging(postgres):
            first = asyncio.create_task(ledger.commit(record()))
            await asyncio.sleep(TIMEOUT_SECONDS / 4)  # the writer has begun the first
            late = [record() for _ in range(3)]
            outcomes = await asyncio.gather(first, *map(ledger.commit, late), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [LedgerUnavailable] * 4
        await up(ledger)
        await ledger.commit(record())
        there = {each.record_id async for each in ledger.records(0, 2**62, None, "")}
    assert not there & {each.record_id for each in late}


async def test_reading_from_a_hanging_database_ends(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Totals of a database that hangs are LEDGER_UNAVAILABLE within the timeout."""
    monkeypatch.setattr("kleinserve.usage.sql.READ_SECONDS", TIMEOUT_SECONDS)
    async with opened(postgres.database()) as ledger:
        await ledger.commit(record())
        with hanging(postgres), pytest.raises(LedgerUnavailable):
            await ledger.totals(0, 2**62, None)
        assert [total.requests for total in await ledger.totals(0, 2**62, None)] == [1]


async def test_notes_are_bounded(tmp_path: Path) -> None:
    """While nothing can be written a bounded number of notes waits and the others are counted."""
    file, dropped = tmp_path / "usage.db", []
    async with opened(f"sqlite:///{file}", on_dropped=lambda: dropped.append(1)) as ledger:
        with locked(file):
            for _ in range(3 * NOTES_MAX):
                ledger.note(record(outcome=Outcome.REFUSED))
            at_once = len(dropped)
        await up(ledger)
    assert NOTES_MAX <= at_once <= 2 * NOTES_MAX
    assert rows(f"sqlite:///{file}", "SELECT count(*) FROM record") == [(3 * NOTES_MAX - len(dropped),)]


async def test_closing_ends_while_the_database_hangs(postgres: Postgres) -> None:
    """Closing a ledger whose database hangs comes to an end while it hangs."""
    ledger = SqlLedger(postgres.database(), timeout_seconds=TIMEOUT_SECONDS)
    with hanging(postgres):
        ledger.note(record())
        await ledger.close()
