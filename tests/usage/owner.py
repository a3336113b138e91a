"""A server that claims a key, waits to be told, then commits it.

python -m tests.usage.owner URL OWNER_SECONDS
"""

import asyncio
import sys

import structlog
from kleinserve.usage.keys import LostOwnership
from kleinserve.usage.sql import SqlLedger
from kleinserve.usage.sql_keys import SqlKeys

from tests.usage.some import record


async def main(url: str, owner_seconds: float) -> None:
    ledger = SqlLedger(url)
    keys = await SqlKeys.open(ledger, key_seconds=3600, keys_max=100, owner_seconds=owner_seconds, address="paused:1")
    claim = await keys.claim("web", "k", b"digest", "paused", 7)
    print(claim.won, flush=True)
    while sys.stdin.readline():  # the loop stands still meanwhile; the thread that says that this server lives does not
        try:
            await keys.commit(record(request_id="paused"), claim.entry)
            print("committed", flush=True)
        except LostOwnership:
            print("lost", flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
