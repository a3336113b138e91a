"""A process that records as fast as it can, with keys and without, and says which records it was told to be durable.

    python -m tests.usage.load URL

Started again it asks for the same keys again, as callers do whose connection broke.
"""

import asyncio
import itertools
import sys

import structlog
from kleinserve.usage.keys import KeyState
from kleinserve.usage.sql import SqlLedger
from kleinserve.usage.sql_keys import SqlKeys

from tests.usage.some import record

WRITERS = 16
NUMBERS = itertools.count()


async def load(ledger: SqlLedger, keys: SqlKeys) -> None:
    while True:
        key, keyed, plain = f"key {next(NUMBERS)}", record(), record(client_tag="")
        claim = await keys.claim("web", key, b"digest", keyed.request_id, 7)
        if claim.won and claim.entry.state is KeyState.RUNNING:
            keyed = record(record_id=keyed.record_id, client_tag=key)
            await keys.commit(keyed, claim.entry)
            print(keyed.record_id, flush=True)
        if claim.won:
            keys.delivered(claim.entry)
        await ledger.commit(plain)
        print(plain.record_id, flush=True)


async def main(url: str) -> None:
    ledger = SqlLedger(url)
    keys = await SqlKeys.open(ledger, key_seconds=3600, keys_max=100_000, owner="load")
    await asyncio.gather(*(load(ledger, keys) for _ in range(WRITERS)))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1]))
