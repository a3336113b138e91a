"""The callers' buckets of megapixels a minute, one for all servers on a database. Knows no request.

Each piece of work runs in the writer's turn (records.py), so reading a bucket, deciding and writing it is atomic. The
arithmetic is in integers: a megapixel is 60,000,000 grains, so that a bucket of N megapixels a minute refills by
exactly N grains a microsecond, as identity/limits.py has it for one server.
"""

from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, delete, select, update

from kleinserve.errors import QuotaExceeded
from kleinserve.usage import records
from kleinserve.usage.records import now
from kleinserve.usage.schema import BUCKET
from kleinserve.usage.sql import SqlLedger

GRAINS = 60_000_000  # of a megapixel
MILLISECOND_MICROSECONDS = 1000
LIMIT = "megapixels_per_minute"


@dataclass(frozen=True)
class Taken:
    """Grains taken from a caller's bucket at a time, which then refilled by so many grains a microsecond."""

    caller: str
    grains: int
    refill: int
    at_microseconds: int


class SqlBuckets:
    """Called on the event loop, which it never blocks."""

    def __init__(self, ledger: SqlLedger):
        self._writer = ledger.writer

    async def take(self, caller: str, megapixels: int, limit: int) -> Taken:
        """Take so many megapixels of a bucket that holds `limit` and refills in a minute.

        What was taken although this has failed, or was cancelled, is given back as soon as that is known. Of a
        connection lost in its COMMIT it never is; the next minute repays that.
        Raises: QuotaExceeded, whose `retry_seconds` is when they fit, rounded up to a millisecond; LedgerUnavailable.
        """
        grains = megapixels * GRAINS
        take = partial(_take, caller=caller, grains=grains, limit=limit)
        taken = await self._writer.run(take, unheard=self._unheard)
        if isinstance(taken, Taken):
            return taken
        milliseconds = -(-taken // (limit * MILLISECOND_MICROSECONDS))
        raise QuotaExceeded(caller, LIMIT, limit, milliseconds / 1000)

    def _unheard(self, taken: Taken | int) -> None:
        if isinstance(taken, Taken):
            self.give_back(taken)

    def give_back(self, taken: Taken) -> None:
        """Give back what the time since has not repaid. Not awaited; kept through outages."""
        self._writer.post(partial(_give_back, taken=taken))


def _take(connection: Connection, caller: str, grains: int, limit: int) -> Taken | int:
    """What was taken; or what lacks, in grains, and then nothing was."""
    time_now = now(connection)
    debt = _debt(connection, caller, time_now)
    lacking = debt + grains - limit * GRAINS
    if lacking > 0:
        return lacking
    row = {"debt_grains": debt + grains, "refill": limit, "at_microseconds": time_now}
    statement = records.insert(connection.dialect.name, BUCKET).values(caller=caller, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=["caller"], set_=row))
    return Taken(caller, grains, limit, time_now)


def _give_back(connection: Connection, taken: Taken) -> None:
    time_now = now(connection)
    left = taken.grains - taken.refill * (time_now - taken.at_microseconds)
    debt = _debt(connection, taken.caller, time_now) - max(0, left)
    mine = BUCKET.c.caller == taken.caller
    if debt <= 0:
        connection.execute(delete(BUCKET).where(mine))
    else:
        connection.execute(update(BUCKET).where(mine).values(debt_grains=debt, at_microseconds=time_now))


def _debt(connection: Connection, caller: str, time_now: int) -> int:
    """What the bucket lacks now, in grains."""
    row = connection.execute(select(BUCKET).where(BUCKET.c.caller == caller)).one_or_none()
    if row is None:
        return 0
    return int(max(0, row.debt_grains - row.refill * (time_now - row.at_microseconds)))
