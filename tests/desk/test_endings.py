"""A job's last moments in every order (desk/jobs.py): its backend has finished, and meanwhile it is cancelled or left.

The desk, its ledger and its keys are real; the backend ends a request when it is told to.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from kleinserve.backend.backend import Load, Sink, State
from kleinserve.config import Config
from kleinserve.core import (
    ANONYMOUS,
    Admitted,
    Draft,
    Failed,
    Finished,
    ModelFacts,
    Operation,
    Outcome,
    Priority,
    Reference,
    Request,
    Size,
    Started,
    UsageRecord,
    Variant,
)
from kleinserve.desk.books import Books
from kleinserve.desk.desk import Asked, Desk, Stream
from kleinserve.desk.kept import Kept, Shelf
from kleinserve.desk.keys import KeyRing
from kleinserve.desk.lifecycle import Lifecycle
from kleinserve.desk.quota import SharedQuota
from kleinserve.errors import Cancelled, KleinError
from kleinserve.identity.limits import Quota
from kleinserve.metrics import Metrics
from kleinserve.usage.price import configured
from kleinserve.usage.sql import SqlLedger
from kleinserve.usage.sql_keys import SqlKeys

from tests.desk.requests import IMAGE, OPTIONS, SPENT

FACTS = ModelFacts("mini", Variant.DISTILLED, Size(64, 64), 4, 1.0, 512, 16, False, "cpu", "float32")
NUMBERS = itertools.count()
EARLIER, LATER = -8, 9  # turns of the event loop by which the ending comes before or after the backend's word


@dataclass
class Told:
    """A backend that finishes a request when it is told to."""

    facts: ModelFacts = FACTS
    sinks: dict[str, Sink] = field(default_factory=dict)

    async def start(self, on_state: Callable[[State], None]) -> None:
        on_state(State.READY)

    async def submit(self, request: Request, seconds_left: float | None, sink: Sink) -> Admitted:
        self.sinks[request.request_id] = sink
        asyncio.get_running_loop().call_soon(sink, Started(0.0))
        return Admitted(3, False, 0.0, 0.1)

    def cancel(self, request_id: str) -> None:
        if (sink := self.sinks.pop(request_id, None)) is not None:
            asyncio.get_running_loop().call_soon(sink, Failed(Cancelled(""), SPENT))

    def finish(self, request_id: str) -> None:
        if (sink := self.sinks.pop(request_id, None)) is not None:
            sink(Finished(IMAGE, SPENT))

    def change(self, request_id: str, seconds_left: float | None, priority: Priority) -> None: ...

    def load(self) -> Load:
        return Load(0.0, 0.0, 0, 0)

    async def drain(self, grace_seconds: float) -> None: ...


class NoIntake:
    async def decode(self, turn: str, references: tuple[bytes, ...], *, keep_alpha: bool) -> tuple[Reference, ...]:
        raise AssertionError("no request has references")


@dataclass
class House:
    """A desk with what it needs."""

    desk: Desk
    backend: Told
    ledger: SqlLedger
    metrics: Metrics
    shelf: Shelf

    async def open(self, key: str) -> Stream:
        number = f"r{next(NUMBERS)}"
        options = replace(OPTIONS, idempotency_key=key)
        draft = Draft(Operation.GENERATE, "a star", (), Size(64, 64), options, is_seed_drawn=True)
        return await self.desk.open(draft, Asked(number, ANONYMOUS, "peer", None, 10, 1))

    async def records(self, request_id: str) -> list[UsageRecord]:
        found = [each async for each in self.ledger.records(0, 2**62, None, "")]
        return [each for each in found if each.request_id == request_id]

    def paid(self) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "klein_cost_microusd_total", {"caller": "anonymous", "operation": "generate"}
            )
            or 0.0
        )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    metrics, lifecycle, backend, config = Metrics(), Lifecycle(), Told(), Config()
    ledger = SqlLedger(f"sqlite:///{tmp_path}/usage.db")
    keys = await SqlKeys.open(ledger, key_seconds=3600, keys_max=1000)
    books = Books(ledger, keys, configured(config), "mini", metrics)

    def evict(kept: Kept) -> None:
        ring.evict(kept)

    loop = asyncio.get_running_loop()
    shelf = Shelf(80 * len(IMAGE.data), 60.0, loop.time, loop.call_later, evict)  # ten of them for a caller
    ring = KeyRing(keys, shelf, FACTS, metrics)
    quota = SharedQuota(Quota(time.monotonic_ns), None)
    desk = Desk(backend, NoIntake(), books, ring, quota, lifecycle, config, metrics)
    await backend.start(lifecycle.become)
    yield House(desk, backend, ledger, metrics, shelf)
    await desk.jobs.drain(10.0)
    await books.close()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ending(house: House, how: str, key: str, stream: Stream) -> None:
    """What the caller does, or an operator."""
    match how:
        case "leave":
            house.desk.leave(stream)
        case "cancel by key":
            await house.desk.cancel(key, ANONYMOUS)
        case "cancel by id":
            house.desk.jobs.cancel_request(stream.job.request.request_id)


@pytest.mark.parametrize(
    ("how", "has_key"),
    [("leave", True), ("leave", False), ("cancel by key", True), ("cancel by id", True), ("cancel by id", False)],
)
async def test_one_record_whenever_it_ends(house: House, how: str, has_key: bool) -> None:
    """Whichever comes first, there is one record, the metrics say what it says, and the key is free if it is unpaid."""
    outcomes = set()
    for offset in range(EARLIER, LATER):
        key, paid = f"key {offset}" if has_key else "", house.paid()
        stream = await house.open(key)
        request_id = stream.job.request.request_id
        await turns(3)
        if offset < 0:
            ended = asyncio.create_task(ending(house, how, key, stream))
            await turns(-offset)
            house.backend.finish(request_id)
        else:
            house.backend.finish(request_id)
            await turns(offset)
            ended = asyncio.create_task(ending(house, how, key, stream))
        await ended
        await house.desk.jobs.drain(10.0)
        if how != "leave":
            house.desk.leave(stream)
        record = await one_record(house, request_id)
        outcomes.add(record.outcome)
        assert record.usage.billable == (record.outcome is Outcome.DELIVERED)
        assert house.paid() - paid == record.usage.cost_microusd
        if has_key:
            again = await house.open(key)
            is_kept = record.usage.billable and how != "cancel by key"
            assert again.reader is not stream.reader
            assert (again.job.request.request_id == request_id) == is_kept
            house.desk.leave(again)
            await house.desk.jobs.drain(10.0)
    assert outcomes == {Outcome.DELIVERED, Outcome.CANCELLED}, "the moments are spread over both"


async def one_record(house: House, request_id: str) -> UsageRecord:
    """The request's record, which may be written behind its stream."""
    async with asyncio.timeout(20):
        while not (records := await house.records(request_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(records) == 1
    return records[0]


async def test_an_image_evicted_while_it_is_read_is_delivered_all_the_same(house: House) -> None:
    """Whoever has read the whole image has had it: asking again is RESULT_GONE, and no second drawing for nothing."""
    stream = await house.open("first")
    house.backend.finish(stream.job.request.request_id)
    await house.desk.jobs.drain(10.0)
    for number in range(12):  # the caller's share of the shelf is ten
        other = await house.open(f"other {number}")
        house.backend.finish(other.job.request.request_id)
        await house.desk.jobs.drain(10.0)
        house.desk.leave(other)
    events = [type(event).__name__ async for event in stream.reader.events()]
    assert events[-2:] == ["EncodedImage", "Completed"]
    house.desk.delivered(stream)
    house.desk.leave(stream)
    with pytest.raises(KleinError) as caught:
        await house.open("first")
    assert caught.value.reason == "RESULT_GONE"


async def test_what_was_kept_for_its_time_is_gone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result goes after `kept_seconds`, also where nobody asks for anything since; then it is not replayed."""
    monkeypatch.setattr(house.shelf, "_seconds", 0.05)
    stream = await house.open("old")
    house.backend.finish(stream.job.request.request_id)
    await house.desk.jobs.drain(10.0)
    house.desk.delivered(stream)
    house.desk.leave(stream)
    async with asyncio.timeout(30):
        while house.shelf.bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(KleinError) as caught:
        await house.open("old")
    assert caught.value.reason == "RESULT_GONE"
    assert (house.shelf.bytes, len(house.shelf)) == (0, 0)
