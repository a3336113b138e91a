"""Records to test with, and rows to look at."""

import time
from typing import Any

import uuid_utils
from kleinserve.core import Operation, Outcome, Size, Usage, UsageRecord
from kleinserve.usage import database
from sqlalchemy import text

PAID = Usage(4096, 1, 0, 14_000, True, "2026-01")


def record(**changes: Any) -> UsageRecord:
    """A delivered image that has just ended, but for `changes`."""
    now = time.time_ns() // 1000
    facts: dict[str, Any] = {
        "record_id": str(uuid_utils.uuid7()),
        "request_id": str(uuid_utils.uuid7()),
        "caller": "web",
        "client_tag": "order 7",
        "model": "mini",
        "operation": Operation.GENERATE,
        "outcome": Outcome.DELIVERED,
        "reason": "",
        "usage": PAID,
        "size": Size(64, 64),
        "references": 0,
        "steps_run": 4,
        "accelerator_microseconds": 81_234,
        "accept_microseconds": now - 1_000_000,
        "end_microseconds": now,
    }
    return UsageRecord(**(facts | changes))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What `statement` selects, seen from outside."""
    engine = database.connect(database.location(url), 30.0, "read")
    try:
        with engine.begin() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]
    finally:
        engine.dispose()
