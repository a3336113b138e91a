"""Records are kept once, in commit order, summed exactly, by either database (usage/{reader,records,schema}.py)."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from kleinserve.core import Operation, Outcome, UsageRecord
from kleinserve.errors import InvalidField, LedgerUnavailable
from kleinserve.usage import database, records
from kleinserve.usage.ledger import BadLedger, UsageTotal
from kleinserve.usage.records import DAY, HOUR, PAGE_RECORDS
from kleinserve.usage.sql import SqlLedger
from sqlalchemy import text

from tests.usage.postgres import Postgres
from tests.usage.some import PAID, record, rows

ALL = (0, 2**62)


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[SqlLedger]:
    ledger = SqlLedger(url)
    yield ledger
    await ledger.close()


async def listed(
    ledger: SqlLedger, start: int = ALL[0], end: int = ALL[1], caller: str | None = None, after: str = ""
) -> list[UsageRecord]:
    return [each async for each in ledger.records(start, end, caller, after)]


async def test_a_record_comes_back_as_it_was(ledger: SqlLedger) -> None:
    """Every field is stored and read as it was given."""
    given = record(
        client_tag="Grüße, 世界",
        operation=Operation.EDIT,
        outcome=Outcome.FAILED,
        reason="INTERNAL",
        usage=replace(PAID, reference_megapixels=3, cost_microusd=2**40, billable=False),
        references=3,
    )
    await ledger.commit(given)
    assert await listed(ledger) == [given]


async def test_closed_nothing_is_open(tmp_path: Path) -> None:
    """Its disk can be taken away: no thread holds a file of the database, nor is one about to read."""
    ledger = SqlLedger(f"sqlite:///{tmp_path}/usage.db")
    await ledger.commit(record())
    await asyncio.gather(*(listed(ledger) for _ in range(10)))
    assert held(tmp_path) != set()
    await ledger.close()
    assert held(tmp_path) == set()


def held(folder: Path) -> set[Path]:
    """The folder's files that this process has open."""
    found = {file.path for file in psutil.Process().open_files()}
    return {path for path in map(Path, found) if path.is_relative_to(folder)}


async def test_the_same_record_again_changes_nothing(ledger: SqlLedger) -> None:
    """A record id is recorded and counted once, however often it is committed, together or apart."""
    same = record()
    await asyncio.gather(*(ledger.commit(same) for _ in range(5)))
    await ledger.commit(replace(same, caller="other"))
    assert await listed(ledger) == [same]
    assert await ledger.totals(*ALL, None) == [UsageTotal("web", Operation.GENERATE, 1, 1, 1, 0, 14_000)]


def summed(given: list[UsageRecord], start: int, end: int, caller: str | None) -> list[UsageTotal]:
    """What totals must say, the slow way."""
    within = [r for r in given if start <= r.end_microseconds < end and caller in (None, r.caller)]
    keys = sorted({(r.caller, r.operation is Operation.EDIT, r.operation) for r in within})
    result = []
    for name, _, operation in keys:
        of_key = [r for r in within if (r.caller, r.operation) == (name, operation)]
        paid = [r.usage for r in of_key if r.usage.billable]
        sums = (
            sum(each.output_megapixels for each in paid),
            sum(each.reference_megapixels for each in paid),
            sum(each.cost_microusd for each in paid),
        )
        result.append(UsageTotal(name, operation, len(of_key), len(paid), *sums))
    return result


async def test_totals_are_exact_at_any_bounds(ledger: SqlLedger) -> None:
    """Totals of any interval equal the sum over its records: bounds on days, on hours, within them, on a record."""
    draw = random.Random(7)
    given = [
        record(
            caller=draw.choice(["web", "batch"]),
            operation=draw.choice(list(Operation)),
            usage=replace(PAID, output_megapixels=draw.randint(1, 4), billable=draw.random() < 0.7),
            end_microseconds=draw.randint(10 * HOUR, 60 * HOUR),
        )
        for _ in range(200)
    ]
    await asyncio.gather(*map(ledger.commit, given))
    ends = [each.end_microseconds for each in given]
    bounds = [
        draw.choice(
            [draw.randint(9 * HOUR, 61 * HOUR), draw.randint(9, 61) * HOUR, draw.randint(0, 3) * DAY, draw.choice(ends)]
        )
        for _ in range(120)
    ]
    for start, end in [*zip(bounds[::2], bounds[1::2], strict=True), (11 * HOUR, 11 * HOUR), ALL]:
        for caller in (None, "web", "nobody"):
            assert await ledger.totals(start, end, caller) == summed(given, start, end, caller), (start, end, caller)


async def test_a_listing_resumes_after_any_record(ledger: SqlLedger) -> None:
    """Records come in commit order, page after page, one caller's or all, and go on after the named one."""
    given = [
        record(caller="web" if n % 3 else "batch", end_microseconds=n * HOUR // 100) for n in range(PAGE_RECORDS + 150)
    ]
    for begin in range(0, len(given), 50):
        await asyncio.gather(*map(ledger.commit, given[begin : begin + 50]))
    assert await listed(ledger) == given
    web = [each for each in given if each.caller == "web"]
    assert await listed(ledger, caller="web", after=web[40].record_id) == web[41:]
    start, end = given[100].end_microseconds, given[180].end_microseconds
    assert await listed(ledger, start, end) == given[100:180]
    assert await listed(ledger, start, end, after=given[150].record_id) == given[151:180]
    assert await listed(ledger, start, end, after=given[500].record_id) == []


async def test_only_a_known_record_can_be_resumed_after(ledger: SqlLedger) -> None:
    """An id that is unknown, or another caller's, is INVALID_FIELD naming the field."""
    of_batch = record(caller="batch")
    await ledger.commit(of_batch)
    for after in ("nonsense", of_batch.record_id):
        with pytest.raises(InvalidField) as refused:
            await listed(ledger, caller="web", after=after)
        assert [violation.field for violation in refused.value.violations] == ["after_record_id"]


async def test_a_record_that_cannot_be_written_spoils_no_other(ledger: SqlLedger) -> None:
    """Of commits that share a transaction only the impossible one fails, and the ledger stays up."""
    good = [record() for _ in range(6)]
    bad = record(accelerator_microseconds=2**70)
    outcomes = await asyncio.gather(*map(ledger.commit, [*good[:3], bad, *good[3:]]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [LedgerUnavailable] + [type(None)] * 3
    assert sorted(r.record_id for r in await listed(ledger)) == sorted(r.record_id for r in good)
    assert ledger.is_up


async def test_text_that_a_database_cannot_hold_is_recorded_all_the_same(ledger: SqlLedger) -> None:
    """A NUL in a client tag, which PostgreSQL refuses, becomes a replacement character and costs no image."""
    await ledger.commit(record(client_tag="a\0b"))
    assert [each.client_tag for each in await listed(ledger)] == ["a\ufffdb"]


async def test_notes_are_written_beside_commits(ledger: SqlLedger) -> None:
    """A noted record is in the ledger when a later commit and a close have passed."""
    noted = record(outcome=Outcome.REFUSED, reason="QUEUE_FULL")
    ledger.note(noted)
    committed = record()
    await ledger.commit(committed)
    assert {each.record_id for each in await listed(ledger)} == {noted.record_id, committed.record_id}


async def test_a_commit_is_timed(url: str) -> None:
    """Each commit that was waited for tells its seconds, and the ledger says at first that it is up."""
    seconds: list[float] = []
    ups: list[bool] = []
    ledger = SqlLedger(url, on_commit=seconds.append, on_up=ups.append)
    await ledger.commit(record())
    ledger.note(record())
    await ledger.close()
    assert len(seconds) == 1
    assert seconds[0] > 0
    assert ups == [True]


async def test_nothing_is_skipped_when_transactions_overlap(postgres: Postgres) -> None:
    """While one server's transaction is open another's waits its turn: who has read up to a record has all before."""
    url = postgres.database()
    ledger = SqlLedger(url)
    other = database.connect(database.location(url), 30.0, "write")
    first, second = record(), record()
    with other.connect() as connection:
        transaction = connection.begin()
        records.in_turn(connection)
        records.add(connection, first)
        commit = asyncio.create_task(ledger.commit(second))
        while not rows(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert not commit.done()
            await asyncio.sleep(0.01)
        assert await listed(ledger) == []
        transaction.commit()
    await commit
    assert await listed(ledger) == [first, second]
    assert rows(url, "SELECT count(DISTINCT position) FROM record") == [(2,)]
    other.dispose()
    await ledger.close()


def started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def loading(url: str) -> "subprocess.Popen[str]":
    return started([sys.executable, "-m", "tests.usage.load", url])


@pytest.mark.parametrize("kills", [3])
async def test_what_was_acknowledged_survives_kill_9(url: str, kills: int) -> None:
    """Of a process killed in the middle of its load every acknowledged record is there once, no key is billed twice by
    the processes that ask for it again, and the totals agree.
    """
    acknowledged: list[str] = []
    for kill in range(kills):
        with loading(url) as process:
            assert process.stdout
            for _ in range(40 + 17 * kill):
                acknowledged.append(process.stdout.readline().strip())
            process.kill()
            acknowledged += process.stdout.read().split("\n")[:-1]  # the last line may be torn
    ledger = SqlLedger(url)
    everything = await listed(ledger)
    there = [each.record_id for each in everything]
    assert len(there) == len(set(there))
    assert set(acknowledged) <= set(there)
    keyed = Counter(each.client_tag for each in everything if each.client_tag)
    assert keyed
    assert set(keyed.values()) == {1}
    assert [total.requests for total in await ledger.totals(*ALL, None)] == [len(there)]
    await ledger.close()
    if url.startswith("sqlite"):
        assert rows(url, "PRAGMA integrity_check") == [("ok",)]


async def test_a_file_has_one_server(tmp_path: Path) -> None:
    """A SQLite file that a running server holds is refused, naming --ledger; one whose server was killed opens."""
    url = f"sqlite:///{tmp_path}/usage.db"
    with loading(url) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(BadLedger, match="--ledger: another running server holds"):
            SqlLedger(url)
        process.kill()
        process.stdout.read()
    ledger = SqlLedger(url)
    with pytest.raises(BadLedger, match=r"--ledger: .* is held by this server already"):
        SqlLedger(url)
    await ledger.commit(record())
    await ledger.close()


async def test_a_child_that_outlives_its_server_holds_nothing(tmp_path: Path) -> None:
    """A forked worker that lives on after its server was killed does not keep the next server from the file."""
    script = (
        "import os, sys, time; from kleinserve.usage.database import FileOwner\n"
        "owner = FileOwner(sys.argv[1])\n"
        "child = os.fork()\n"
        "print(child, flush=True) if child else None\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "usage.db")]
    with started(command) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        await SqlLedger(f"sqlite:///{tmp_path}/usage.db").close()
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nonsense", "neither sqlite, none nor a database URL"),
        ("mysql://user:secret@host/usage", "only SQLite and PostgreSQL"),
        ("sqlite://", "needs a plain file"),
        ("sqlite:///:memory:", "needs a plain file"),
        ("sqlite:////proc/usage/usage.db", "cannot write to /proc/usage"),
        ("sqlite:////dev/null/usage.db", "cannot write to /dev/null"),
        ("postgresql://user:secret@127.0.0.1:1/usage", "cannot open postgresql+psycopg://user:***@127.0.0.1:1/usage"),
    ],
)
def test_a_ledger_that_cannot_be_used_is_one_line(given: str, says: str) -> None:
    """What --ledger cannot mean, or cannot open, is a BadLedger of one line that names it and shows no password."""
    with pytest.raises(BadLedger) as refused:
        SqlLedger(given)
    line = str(refused.value)
    assert "--ledger" in line
    assert says in line
    assert "\n" not in line
    assert "secret" not in line


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A file of something else is left as it is."""
    file = tmp_path / "usage.db"
    file.write_text("something else, and long enough to be looked at as a database header" * 10)
    with pytest.raises(BadLedger, match=r"--ledger: cannot open .* not a database"):
        SqlLedger(f"sqlite:///{file}")
    assert file.read_text().startswith("something else")


def test_the_default_is_in_the_users_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`sqlite` alone is usage.db in the user's data directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert database.location("sqlite").database == str(tmp_path / "kleinserve" / "usage.db")


async def test_a_paused_writer_does_not_hold_up_the_others(postgres: Postgres) -> None:
    """A server that stops inside its transaction loses it soon, and the commits of the others go through in time."""
    url = postgres.database()
    ledger = SqlLedger(url)
    paused = database.connect(database.location(url), 2.0, "write")
    connection = paused.connect()
    connection.begin()
    records.in_turn(connection)
    connection.execute(text("SELECT 1"))
    await ledger.commit(record())
    connection.invalidate()
    connection.close()
    paused.dispose()
    await ledger.close()
