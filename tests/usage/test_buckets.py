"""Buckets of megapixels that servers share (desk/quota.py)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kleinserve.core import Caller
from kleinserve.desk.quota import SharedQuota
from kleinserve.errors import LedgerUnavailable, QuotaExceeded
from kleinserve.identity.limits import Grant, Quota
from kleinserve.usage import buckets
from kleinserve.usage.buckets import SqlBuckets
from kleinserve.usage.sql import SqlLedger

from tests.scheduler.scripted import Clock
from tests.usage.postgres import Postgres
from tests.usage.slow import held
from tests.usage.some import rows

WEB = Caller("web", requests_max=100, megapixels_per_minute=6)
RACERS = 20
SECOND, MILLISECOND = 10**6, 10**3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The databases' clock, in microseconds, which now stands still until someone moves it."""
    clock = Clock(1_700_000_000 * SECOND)
    monkeypatch.setattr(buckets, "now", lambda connection: clock.now)
    return clock


@asynccontextmanager
async def quotas(url: str, number: int = 2, **settings: float) -> AsyncIterator[list[SharedQuota]]:
    """Those of so many servers on one database, whose own clocks stand still."""
    ledgers = [SqlLedger(url, **settings) for _ in range(number)]
    try:
        yield [SharedQuota(Quota(lambda: 0), SqlBuckets(ledger)) for ledger in ledgers]
    finally:
        await asyncio.gather(*(ledger.close() for ledger in ledgers))


async def admit(quota: SharedQuota, caller: Caller, megapixels: int) -> Grant:
    """A request's slot and its megapixels, or neither."""
    grant = quota.join(caller)
    try:
        await quota.charge(grant, caller, megapixels)
    except BaseException:
        grant.release(ran=False, by_server=False)
        raise
    return grant


async def test_one_bucket(postgres: Postgres, clock: Clock) -> None:
    """What one server admits the other lacks, to the millisecond; the refusal names the limit and says when it fits."""
    async with quotas(postgres.database()) as (first, second):
        await admit(first, WEB, 4)
        clock.now += SECOND
        with pytest.raises(QuotaExceeded) as caught:
            await admit(second, WEB, 3)
        assert (caught.value.limit, caught.value.value) == ("megapixels_per_minute", 6)
        assert caught.value.retry_seconds == 9.0
        await admit(second, WEB, 2)
        await admit(second, Caller("other", megapixels_per_minute=6), 6)


async def test_it_refills(postgres: Postgres, clock: Clock) -> None:
    """After the time that a refusal names the same fits, and not a millisecond before."""
    async with quotas(postgres.database()) as (first, second):
        await admit(first, WEB, 6)
        for wait, said in ((0, 50.0), (50 * SECOND - MILLISECOND, 0.001)):
            clock.now += wait
            with pytest.raises(QuotaExceeded) as caught:
                await admit(second, WEB, 5)
            assert caught.value.retry_seconds == said
        clock.now += MILLISECOND
        await admit(second, WEB, 5)


async def test_the_time_is_the_database_s(url: str) -> None:
    """A refusal says when the bucket is full again: in a minute, less what has passed since it was emptied."""
    async with quotas(url, 1) as (only,):
        began = time.monotonic()
        await admit(only, WEB, 6)
        with pytest.raises(QuotaExceeded) as caught:
            await admit(only, WEB, 6)
        passed = time.monotonic() - began
    assert 60.0 - passed <= float(caught.value.retry_seconds or 0) <= 60.0


async def test_racing(postgres: Postgres, clock: Clock) -> None:
    """Of many at once on two servers exactly as many are admitted as fit."""
    async with quotas(postgres.database()) as both:
        race = [admit(each, WEB, 1) for _ in range(RACERS // 2) for each in both]
        told = await asyncio.gather(*race, return_exceptions=True)
    assert sum(isinstance(each, QuotaExceeded) for each in told) == RACERS - 6


@pytest.mark.parametrize(
    ("ran", "by_server", "comes_back"), [(False, False, True), (True, True, True), (True, False, False)]
)
async def test_what_comes_back(postgres: Postgres, clock: Clock, ran: bool, by_server: bool, comes_back: bool) -> None:
    """Megapixels come back, for all servers, if no step ran or the server ended the request; once, and none repaid."""
    async with quotas(postgres.database()) as (first, second):
        grant = await admit(first, WEB, 2)
        await admit(second, WEB, 4)
        clock.now += 10 * SECOND  # which repay one of the two
        for _ in range(2):
            grant.release(ran=ran, by_server=by_server)
        await admit(first, WEB, 1)  # after what was posted before
        with pytest.raises(QuotaExceeded) as caught:
            await admit(second, WEB, 6)
    assert caught.value.retry_seconds == (50.0 if comes_back else 60.0)


async def test_more_than_the_bucket(postgres: Postgres) -> None:
    """What never fits is refused without the database, and asks for an hour."""
    async with quotas(postgres.database()) as (first, _):
        with pytest.raises(QuotaExceeded) as caught:
            await admit(first, WEB, 7)
    assert caught.value.retry_seconds == 3600.0


async def test_slots_are_each_servers(postgres: Postgres) -> None:
    """`requests_max` holds on each server by itself, and a slot that the bucket refused is free again."""
    one = Caller("one", requests_max=1, megapixels_per_minute=6)
    async with quotas(postgres.database()) as (first, second):
        grants = [await admit(first, one, 1), await admit(second, one, 1)]
        with pytest.raises(QuotaExceeded) as caught:
            first.join(one)
        assert caught.value.limit == "requests_max"
        grants[0].release(ran=True, by_server=False)
        with pytest.raises(QuotaExceeded):
            await admit(first, one, 6)
        first.join(one)


async def test_without_the_database(postgres: Postgres) -> None:
    """While the database hangs nobody with a bucket is admitted, and the event loop goes on."""
    async with quotas(postgres.database(), 1, timeout_seconds=1.0) as (first,):
        await admit(first, WEB, 1)
        postgres.suspend()
        try:
            waiting = asyncio.create_task(admit(first, WEB, 1))
            await asyncio.sleep(0)
            assert not waiting.done()
            with pytest.raises(LedgerUnavailable):
                await waiting
            await admit(first, Caller("free"), 1)
        finally:
            postgres.resume()


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_nobody_hears_of_what_was_taken(url: str, is_cancelled: bool) -> None:
    """Megapixels whose request was cancelled, or timed out, while they were being taken come back."""
    ledger = SqlLedger(url)
    quota = SharedQuota(Quota(lambda: 0), SqlBuckets(ledger))
    with held(ledger, "commit") as hang:
        admission = asyncio.create_task(admit(quota, WEB, 6))
        await asyncio.to_thread(hang.began.wait)
        if is_cancelled:
            admission.cancel()
        with pytest.raises(asyncio.CancelledError if is_cancelled else LedgerUnavailable):
            await admission
        assert rows(url, "SELECT debt_grains > 0 FROM bucket") == [(True,)]
    await ledger.writer.run(lambda connection: None)  # behind what hung
    await admit(quota, WEB, 6)
    await ledger.close()
