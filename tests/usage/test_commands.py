"""`kleinserve usage export`, `prune` and `migrate` beside a ledger that a server writes."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kleinserve.core import Outcome
from kleinserve.usage import commands
from kleinserve.usage.ledger import BadLedger
from kleinserve.usage.records import DAY, HOUR
from kleinserve.usage.sql import SqlLedger

from tests.usage.postgres import Postgres
from tests.usage.some import record


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[SqlLedger]:
    ledger = SqlLedger(url)
    yield ledger
    await ledger.close()


def exported(capsys: pytest.CaptureFixture[str], url: str, after: str = "") -> list[dict[str, Any]]:
    assert commands.export(url, after, follow=False) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_an_event_is_a_record(ledger: SqlLedger, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is a CloudEvent 1.0 whose id is the record's, while the server that writes them runs."""
    given = record(
        client_tag="Zeile\n2", accept_microseconds=1_700_000_000_000_001, end_microseconds=1_700_000_000_500_000
    )
    await ledger.commit(given)
    assert exported(capsys, url) == [
        {
            "specversion": "1.0",
            "id": given.record_id,
            "source": "/kleinserve/usage",
            "type": "klein.v1.usage",
            "subject": "web",
            "time": "2023-11-14T22:13:20.500000Z",
            "datacontenttype": "application/json",
            "cursor": "1",
            "data": {
                "caller": "web",
                "request_id": given.request_id,
                "client_tag": "Zeile\n2",
                "model": "mini",
                "operation": "generate",
                "outcome": "delivered",
                "reason": "",
                "output_pixels": 4096,
                "output_megapixels": 1,
                "reference_megapixels": 0,
                "cost_microusd": 14_000,
                "billable": True,
                "price_version": "2026-01",
                "width": 64,
                "height": 64,
                "reference_count": 0,
                "steps_run": 4,
                "accelerator_microseconds": 81_234,
                "accept_time": "2023-11-14T22:13:20.000001Z",
                "end_time": "2023-11-14T22:13:20.500000Z",
            },
        }
    ]


async def test_an_export_resumes_at_any_cursor(ledger: SqlLedger, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What comes after an event's cursor is every later record, whatever its outcome, and none twice."""
    given = [record(outcome=Outcome.CANCELLED if n % 2 else Outcome.DELIVERED) for n in range(7)]
    for each in given:
        await ledger.commit(each)
    events = exported(capsys, url)
    assert [event["id"] for event in events] == [each.record_id for each in given]
    for n, event in enumerate(events):
        assert [later["id"] for later in exported(capsys, url, event["cursor"])] == [
            r.record_id for r in given[n + 1 :]
        ]


FOLLOW = "import sys; from kleinserve.usage import commands; sys.exit(commands.export(sys.argv[1], '', True))"


def following(url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FOLLOW, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_following_tells_every_record_as_it_comes(ledger: SqlLedger, url: str) -> None:
    """`--follow` prints what is there and what comes, in order, each once; when its reader goes it ends well."""
    given = [record() for _ in range(20)]
    await ledger.commit(given[0])
    with following(url) as process:
        assert process.stdout
        assert process.stderr
        told = [json.loads(process.stdout.readline())["id"]]
        for begin in range(1, 20, 5):
            for each in given[begin : begin + 5]:
                await ledger.commit(each)
            told += [json.loads(process.stdout.readline())["id"] for _ in given[begin : begin + 5]]
        process.stdout.close()
        await ledger.commit(record())
        assert process.wait() == 0
        assert process.stderr.read() == ""
    assert told == [each.record_id for each in given]


async def test_following_waits_for_a_database_that_is_away(postgres: Postgres) -> None:
    """`--follow` says that it waits for PostgreSQL, and goes on where it was when that is back."""
    url = postgres.database()
    ledger = SqlLedger(url)
    first, second = record(), record()
    await ledger.commit(first)
    with following(url) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["id"] == first.record_id
        postgres.kill()
        assert process.stderr.readline().startswith("waiting for the ledger: ")
        postgres.start()
        await ledger.commit(second)
        assert json.loads(process.stdout.readline())["id"] == second.record_id
        process.kill()
    await ledger.close()


async def test_pruning_keeps_the_totals(ledger: SqlLedger, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Records before the day are gone, later ones stay; totals of whole hours stay, and bounds within pruned hours do
    not count anything twice.
    """
    today = datetime.now(UTC).date()
    midnight = int(datetime(today.year, today.month, today.day, tzinfo=UTC).timestamp()) * 1_000_000
    old = [record(end_microseconds=midnight - DAY + n * HOUR // 2) for n in range(48)]
    new = [record(end_microseconds=midnight + n) for n in range(3)]
    for each in [*old, *new]:
        await ledger.commit(each)
    whole = await ledger.totals(midnight - DAY, midnight + HOUR, None)
    assert commands.prune(url, today.isoformat()) == 0
    assert capsys.readouterr().out.startswith("pruned 48 records")
    assert [each async for each in ledger.records(0, 2**62, None, "")] == new
    assert await ledger.totals(midnight - DAY, midnight + HOUR, None) == whole
    between = midnight - 5 * HOUR - HOUR // 4
    parts = [await ledger.totals(midnight - DAY, between, None), await ledger.totals(between, midnight + HOUR, None)]
    assert sum(part[0].requests for part in parts) == whole[0].requests == 51
    assert [event["id"] for event in exported(capsys, url, "3")] == [each.record_id for each in new]
    assert commands.prune(url, today.isoformat()) == 0
    assert capsys.readouterr().out.startswith("pruned 0 records")


async def test_a_place_is_never_given_twice(ledger: SqlLedger, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A cursor of a ledger that was pruned to nothing still has every later record after it."""
    await ledger.commit(record(end_microseconds=DAY))
    (event,) = exported(capsys, url)
    commands.prune(url, "1971-01-01")
    capsys.readouterr()
    new = record()
    await ledger.commit(new)
    assert [each["id"] for each in exported(capsys, url, event["cursor"])] == [new.record_id]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "²", "9" * 19])
def test_a_cursor_that_is_none_is_refused(after: str) -> None:
    """`--after` takes what an event's cursor says."""
    with pytest.raises(BadLedger, match="--after"):
        commands.export("sqlite", after, follow=False)


@pytest.mark.parametrize("before", ["yesterday", "2026-02-30", (datetime.now(UTC) + timedelta(2)).date().isoformat()])
def test_a_date_that_cannot_be_pruned_before_is_refused(before: str) -> None:
    """`--before` takes a day up to today."""
    with pytest.raises(BadLedger, match="--before"):
        commands.prune("sqlite", before)


def test_without_a_ledger_there_is_nothing_to_do(tmp_path: Path) -> None:
    """`--ledger none`, and a file that is not there, are refused, and no file is made."""
    for ledger in ("none", f"sqlite:///{tmp_path}/usage.db"):
        with pytest.raises(BadLedger, match="--ledger"):
            commands.export(ledger, "", follow=False)
    assert not list(tmp_path.iterdir())
