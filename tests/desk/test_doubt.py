"""A commit that is heard of too late, or never: who was told LEDGER_UNAVAILABLE has no image and pays nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest
from kleinserve.core import Operation, Outcome
from kleinserve.desk.job import Job
from kleinserve.errors import LedgerUnavailable
from kleinserve.usage import commands
from kleinserve.usage.keys import Entry
from kleinserve.usage.ledger import UsageTotal

from tests.desk.test_books import Open, drawn, new
from tests.usage.postgres import Postgres
from tests.usage.slow import Where, held
from tests.usage.some import rows

LANDED = [("record", "delivered", True)]
RECORDS = "SELECT record_id, outcome, billable FROM record"
FAILED = UsageTotal("anonymous", Operation.GENERATE, 1, 0, 0, 0, 0)
everywhere = pytest.mark.parametrize("where", get_args(Where))


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Open]:
    made = await new(url)
    await made.records()
    yield made
    await made.books.close()


async def claimed(opened: Open, request_id: str = "a") -> Entry:
    claim = await opened.keys.claim("anonymous", "k", b"digest", request_id, 7)
    assert claim.won
    return claim.entry


async def settled_in_vain(opened: Open, job: Job) -> None:
    """Settle, hear that this failed, and do what the desk does then."""
    with pytest.raises(LedgerUnavailable) as caught:
        await opened.books.settle(job)
    job.fail(caught.value)
    if job.entry is not None:
        opened.keys.free(job.entry)
    opened.books.finish(job)


@everywhere
async def test_without_a_key(url: str, opened: Open, where: Where) -> None:
    """What was written all the same gives way to the record of a failed request, in the totals too."""
    with held(opened.ledger, where):
        await settled_in_vain(opened, drawn())
        assert rows(url, RECORDS) == ([] if where == "statement" else LANDED)
    [record] = await opened.records()
    assert (record.request_id, record.outcome, record.reason) == ("a", Outcome.FAILED, "LEDGER_UNAVAILABLE")
    assert not record.usage.billable
    assert await opened.ledger.totals(0, 2**62, None) == [FAILED]
    assert await opened.ledger.totals(record.end_microseconds, record.end_microseconds + 1, None) == [FAILED]
    assert opened.paid is None


@everywhere
async def test_with_a_key(url: str, opened: Open, where: Where) -> None:
    """The key is free again; drawn anew it is billed once, and metrics and ledger agree on that."""
    job, again = drawn(), drawn("again")
    job.entry = await claimed(opened)
    with held(opened.ledger, where):
        await settled_in_vain(opened, job)
        assert rows(url, RECORDS) == ([] if where == "statement" else LANDED)
    again.entry = await claimed(opened, "b")
    await opened.books.settle(again)
    assert [record.outcome for record in await opened.records()] == [Outcome.FAILED, Outcome.DELIVERED]
    [total] = await opened.ledger.totals(0, 2**62, None)
    assert (total.requests, total.images, total.cost_microusd) == (2, 1, 14_000)
    assert opened.paid == 14_000


async def test_who_has_read_it_reads_what_became_of_it(
    url: str, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export that saw the delivered record finds, after its cursor, the failed one of the same request."""

    def exported(after: str) -> list[dict[str, Any]]:
        commands.export(url, after, follow=False)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    with held(opened.ledger, "commit"):
        await settled_in_vain(opened, drawn())
        [early] = exported("")
    await opened.records()
    [late] = exported(early["cursor"])
    assert early["data"]["billable"]
    assert not late["data"]["billable"]
    assert early["id"] != late["id"]
    assert early["data"]["request_id"] == late["data"]["request_id"]


async def test_another_server_has_it_by_then(postgres: Postgres) -> None:
    """A server that takes the key over while the first hangs has the record too: it stays, and is counted, once."""
    url = postgres.database()
    first, second = await new(url, owner_seconds=1.0), await new(url)
    job = drawn()
    job.entry = await claimed(first)
    with held(first.ledger, "commit"):
        await settled_in_vain(first, job)
        while not (claim := await second.keys.claim("anonymous", "k", b"digest", "b", 7)).won:  # noqa: ASYNC110 - a database has nothing to await
            await asyncio.sleep(0.05)  # until the first counts as gone
        assert claim.entry.record_id == "record"
    assert [(each.record_id, each.usage.billable) for each in await first.records()] == [("record", True)]
    assert (first.paid, second.paid) == (14_000, None)
    for opened in (first, second):
        await opened.books.close()


async def test_it_is_kept_through_an_outage(url: str, opened: Open) -> None:
    """Requests that end while the database does not answer have their records when it does, in that order."""
    with held(opened.ledger, "lost"):
        await settled_in_vain(opened, drawn())
        for number in range(3):
            ended = drawn(f"later {number}")
            ended.fail(LedgerUnavailable())
            opened.books.finish(ended)
        assert rows(url, RECORDS) == LANDED
    ids = [record.record_id for record in await opened.records()]
    assert ids[1:] == [f"later {number}" for number in range(3)]
    assert "record" not in ids
