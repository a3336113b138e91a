"""Records in a real ledger: settled before an image goes out, once for every job, refusals beside."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kleinserve.core import Outcome, Size, UsageRecord
from kleinserve.desk.books import Books
from kleinserve.desk.job import Job
from kleinserve.errors import (
    Cancelled,
    DeadlinePassed,
    Internal,
    KleinError,
    LedgerUnavailable,
    QueueFull,
)
from kleinserve.metrics import Metrics
from kleinserve.usage.keys import KeyState
from kleinserve.usage.price import Price
from kleinserve.usage.sql import SqlLedger
from kleinserve.usage.sql_keys import SqlKeys

from tests.desk.requests import SPENT, USAGE, job
from tests.desk.stage import drafted

ALL = (0, 2**62, None, "")


@dataclass
class Open:
    """Books over a SQLite file."""

    books: Books
    ledger: SqlLedger
    keys: SqlKeys
    metrics: Metrics

    async def records(self) -> list[UsageRecord]:
        """All that is written, when what waits has been."""
        await self.ledger.writer.run(lambda connection: None)
        return [record async for record in self.ledger.records(*ALL)]

    @property
    def paid(self) -> float | None:
        labels = {"caller": "anonymous", "operation": "generate"}
        return self.metrics.registry.get_sample_value("klein_cost_microusd_total", labels)


async def new(url: str, owner_seconds: float = 3600) -> Open:
    ledger, metrics = SqlLedger(url), Metrics()
    keys = await SqlKeys.open(ledger, key_seconds=3600, keys_max=100, owner_seconds=owner_seconds)
    return Open(Books(ledger, keys, Price(14_000, 1_000, 0, "test"), "mini", metrics), ledger, keys, metrics)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/usage.db"


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Open]:
    made = await new(url)
    yield made
    await made.books.close()


def drawn(record_id: str = "record") -> Job:
    made = job()
    made.record_id, made.spent, made.accept_microseconds = record_id, SPENT, 1_700_000_000_000_000
    return made


async def test_a_settled_image_is_written_down_and_counted(opened: Open) -> None:
    """When settle returns the record is there, with all facts, and the caller's cost has grown."""
    await opened.books.settle(drawn())
    [record] = await opened.records()
    assert (record.record_id, record.request_id, record.outcome, record.reason) == (
        "record",
        "a",
        Outcome.DELIVERED,
        "",
    )
    assert (record.usage, record.size, record.model) == (USAGE, Size(64, 64), "mini")
    assert (record.steps_run, record.accelerator_microseconds) == (SPENT.steps_run, SPENT.accelerator_microseconds)
    assert record.accept_microseconds == 1_700_000_000_000_000 < record.end_microseconds
    assert opened.paid == 14_000


async def test_with_a_key_the_key_is_committed_too(opened: Open) -> None:
    """Both in one transaction: the key knows its record and its usage."""
    keyed = drawn()
    keyed.entry = (await opened.keys.claim("anonymous", "k", b"digest", "a", 7)).entry
    await opened.books.settle(keyed)
    entry = await opened.keys.find("anonymous", "k")
    assert entry is not None
    assert (entry.state, entry.record_id, entry.usage) == (KeyState.COMMITTED, "record", USAGE)
    assert [record.record_id for record in await opened.records()] == ["record"]


async def test_a_key_that_was_lost_is_not_billed(opened: Open) -> None:
    """Neither when it is settled nor when the job is then finished as failed: whoever has the key records it."""
    keyed = drawn()
    keyed.entry = (await opened.keys.claim("anonymous", "k", b"digest", "a", 7)).entry
    opened.keys.forget(keyed.entry)
    with pytest.raises(LedgerUnavailable, match="another server"):
        await opened.books.settle(keyed)
    keyed.fail(LedgerUnavailable())
    opened.books.finish(keyed)
    assert (await opened.records(), opened.paid) == ([], None)


async def test_what_was_billed_before_is_not_recorded_again(opened: Open) -> None:
    """A redraw, whether it succeeds or fails."""
    redraw = drawn()
    redraw.is_redraw = True
    await opened.books.settle(redraw)
    opened.books.finish(redraw)
    assert (await opened.records(), opened.paid) == ([], None)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Cancelled("gone"), Outcome.CANCELLED),
        (DeadlinePassed("late"), Outcome.DEADLINE),
        (Internal("ours"), Outcome.FAILED),
    ],
)
async def test_without_an_image_nobody_pays(opened: Open, error: KleinError, outcome: Outcome) -> None:
    """The record has what was spent and why it ended, and costs nothing."""
    ended = drawn()
    ended.fail(error)
    opened.books.finish(ended)
    [record] = await opened.records()
    assert (record.outcome, record.reason, record.steps_run) == (outcome, error.reason, SPENT.steps_run)
    assert record.usage == replace(USAGE, billable=False, cost_microusd=0)
    assert opened.paid is None


@pytest.mark.parametrize(("size", "recorded"), [(Size(96, 64), Size(96, 64)), (None, Size(0, 0))])
async def test_a_refusal_is_noted(url: str, size: Size | None, recorded: Size) -> None:
    """With what was asked; a size that only a reference would have said is none."""
    opened = await new(url)
    draft = replace(drafted(references=2, client_tag="order 7"), size=size)
    opened.books.refuse("b", "web", draft, QueueFull("full"), 5)
    await opened.books.close()
    again = await new(url)
    [refused] = await again.records()
    assert (refused.outcome, refused.reason, refused.caller) == (Outcome.REFUSED, "QUEUE_FULL", "web")
    assert (refused.size, refused.references, refused.client_tag) == (recorded, 2, "order 7")
    assert (refused.usage.billable, refused.usage.cost_microusd, refused.accept_microseconds) == (False, 0, 5)
    await again.books.close()


async def test_closing_writes_what_is_being_written(url: str) -> None:
    """Records of the last moment are in the file when the books are closed."""
    opened = await new(url)
    for i in range(5):
        ended = drawn(f"record {i}")
        ended.fail(Cancelled("gone"))
        opened.books.finish(ended)
    await opened.books.close()
    again = await new(url)
    assert len(await again.records()) == 5
    await again.books.close()
