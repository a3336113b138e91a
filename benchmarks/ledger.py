"""The ledger at ten million records: totals, the first record of a listing, commits. Its keys, at their bound.

    python -m benchmarks.ledger [--records 10000000] [--keys 1000000] [--days 30] [--callers 100] [--folder DIR]

Fills a SQLite file (minutes and 3 GiB at ten million) with rows as the ledger writes them, then asks as servers do.
Exit code 1 where the median of some GetUsage, of a day or of all days, is over a second, or a claim of a key ever.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from kleinserve.core import Operation, Outcome, Size, Usage, UsageRecord
from kleinserve.usage import database
from kleinserve.usage.records import DAY, HOUR
from kleinserve.usage.sql import SqlLedger
from kleinserve.usage.sql_keys import SqlKeys
from sqlalchemy import text

BATCH = 100_000
BEGIN = 1_767_225_600_000_000  # 2026-01-01
COMMITS, CLAIMS = 200, 2000
SECONDS_MAX = 1.0


def some(number: int, caller: str, end: int) -> UsageRecord:
    paid = number % 10 != 0
    usage = Usage(1_048_576, 1 + number % 4, number % 3, 14_000 + 1000 * (number % 4), paid, "2026-01")
    return UsageRecord(
        str(uuid.UUID(int=(end << 64) + number)),
        str(uuid.UUID(int=(end << 64) + number + 1)),
        caller,
        "",
        "klein-4b",
        Operation.EDIT if number % 3 else Operation.GENERATE,
        Outcome.DELIVERED if paid else Outcome.CANCELLED,
        "" if paid else "CANCELLED",
        usage,
        Size(1024, 1024),
        number % 3,
        4,
        1_234_567,
        end - 3_000_000,
        end,
    )


RECORDS = """
WITH RECURSIVE number(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM number WHERE n < :last)
INSERT INTO record
SELECT n + 1, printf('%012x-7%03x-8000-%012x', (:begin + n * :step) / 1000, n % 4096, n), printf('%036x', n),
       'caller-' || abs(random() % :callers), '', 'klein-4b', iif(n % 3, 'edit', 'generate'),
       iif(n % 10, 'delivered', 'cancelled'), iif(n % 10, '', 'CANCELLED'),
       1048576, 1 + n % 4, n % 3, 14000 + 1000 * (n % 4), n % 10 <> 0, '2026-01', 1024, 1024, n % 3, 4, 1234567,
       :begin + n * :step - 3000000, :begin + n * :step
FROM number"""
KEYS = """
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :count)
INSERT INTO job
SELECT iif(n % 100, 'greedy', 'caller-' || n % 7), 'key-' || n, randomblob(32), printf('%032x', n), n,
       iif(n % 3, 'delivered', 'committed'), 'file', 1, printf('%036x', n), 1048576, 1, 0, 14000, 1, '2026-01', :now
FROM number"""
TOTALS = """
INSERT INTO total
SELECT :span, end_microseconds - end_microseconds % :span AS start, caller, operation, count(*), sum(billable),
       sum(billable * output_megapixels), sum(billable * reference_megapixels), sum(billable * cost_microusd),
       min(position), max(position)
FROM record GROUP BY start, caller, operation"""


def fill(url: str, count: int, days: int, callers: int) -> None:
    """`count` records spread evenly over `days`, and the totals of their hours and days."""
    engine = database.connect(database.location(url), 60.0, "write")
    given = {"begin": BEGIN, "step": days * DAY // count, "callers": callers}
    for first in range(0, count, BATCH):
        with engine.begin() as connection:
            connection.execute(text(RECORDS), given | {"first": first, "last": min(first + BATCH, count) - 1})
    with engine.begin() as connection:
        for span in (HOUR, DAY):
            connection.execute(text(TOTALS), {"span": span})
    engine.dispose()


async def timed(what: str, ask: Callable[[], Awaitable[object]], times: int = 5) -> float:
    """The median, in seconds."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        await ask()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    print(f"{what:58} first {seconds[0] * 1000:8.1f} ms   median {median * 1000:8.1f} ms", flush=True)
    return median


async def first_record(
    ledger: SqlLedger, start: int, end: int, caller: str | None, after: str = ""
) -> UsageRecord | None:
    return await anext(ledger.records(start, end, caller, after), None)


async def ask(url: str, days: int) -> float:
    """The slowest median of totals, in seconds."""
    begin = time.perf_counter()
    ledger = SqlLedger(url)
    print(f"opened in {time.perf_counter() - begin:.2f} s")
    odd, month = 17 * 60_000_000 + 1, BEGIN + days * DAY  # bounds inside hours: the edges come from the records
    day, minute = BEGIN + min(10, days - 1) * DAY, month - HOUR // 60
    intervals = {
        "a day": (day, day + DAY),
        "a day from :17": (day + odd, day + DAY + odd),
        "all days": (BEGIN, month),
        "all days from :17": (BEGIN + odd, month - odd),
        "the last minute": (minute, month),
    }
    slowest = 0.0
    for caller in (None, "caller-7"):
        for name, interval in intervals.items():
            what = f"{name}, {caller or 'everyone'}"
            slowest = max(slowest, await timed(f"GetUsage of {what}", partial(ledger.totals, *interval, caller)))
            await timed(f"first record of {what}", partial(first_record, ledger, *interval, caller))
    last = await first_record(ledger, minute, month, None)
    assert last
    await timed("first record after a late one", partial(first_record, ledger, BEGIN, month, None, last.record_id))
    await commits(ledger, month)
    await ledger.close()
    return slowest


async def commits(ledger: SqlLedger, end: int) -> None:
    """Commits one after the other, and sixteen at a time."""
    number = iter(range(2**40, 2**41))

    async def commit() -> None:
        await ledger.commit(some(next(number), "caller-7", end))

    await timed("one commit", commit, COMMITS)
    begin = time.perf_counter()

    async def several() -> None:
        for _ in range(COMMITS):
            await commit()

    await asyncio.gather(*(several() for _ in range(16)))
    print(f"{16 * COMMITS / (time.perf_counter() - begin):.0f} commits a second by 16 at a time")


async def claims(url: str, count: int) -> float:
    """The slowest claim where there are as many keys as there may be, so that some of them must make room."""
    engine = database.connect(database.location(url), 60.0, "write")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM job"))
        connection.execute(text(KEYS), {"count": count, "now": time.time_ns() // 1000})
    engine.dispose()
    ledger = SqlLedger(url)
    keys = await SqlKeys.open(ledger, key_seconds=86_400.0, keys_max=count)
    seconds = []
    for number in range(CLAIMS):
        begin = time.perf_counter()
        await keys.claim("caller-8", f"new-{number}", bytes(32), uuid.uuid4().hex, number)
        seconds.append(time.perf_counter() - begin)
    keys.close()
    await ledger.close()
    median, slowest = statistics.median(seconds), max(seconds)
    print(f"a claim among {count:,} keys: median {median * 1000:.1f} ms, slowest of {CLAIMS} {slowest * 1000:.0f} ms")
    return slowest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--callers", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="keep the file here, and use it if it is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        file = (given.folder or Path(temporary)) / "usage.db"
        url = f"sqlite:///{file}"
        if not file.exists():
            begin = time.perf_counter()
            asyncio.run(SqlLedger(url).close())
            fill(url, given.records, given.days, given.callers)
            seconds, size = time.perf_counter() - begin, file.stat().st_size / 2**30
            print(f"{given.records:,} records in {seconds:.0f} s, {size:.2f} GiB")
        slowest = asyncio.run(ask(url, given.days))
        slowest_claim = asyncio.run(claims(url, given.keys))
    print(f"slowest GetUsage {slowest:.3f} s, slowest claim {slowest_claim:.3f} s, each at most {SECONDS_MAX:.0f} s")
    return 1 if max(slowest, slowest_claim) > SECONDS_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
