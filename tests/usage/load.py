"""A process that commits as fast as it can and says which records it was told to be durable.

python -m tests.usage.load URL
"""

import asyncio
import sys

import structlog
from kleinserve.usage.sql import SqlLedger

from tests.usage.some import record

WRITERS = 16


async def commit(ledger: SqlLedger) -> None:
    while True:
        new = record()
        await ledger.commit(new)
        print(new.record_id, flush=True)


async def main(url: str) -> None:
    ledger = SqlLedger(url)
    await asyncio.gather(*(commit(ledger) for _ in range(WRITERS)))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1]))
