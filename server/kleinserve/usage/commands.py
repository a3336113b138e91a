"""`kleinserve usage …`: what operators do with the ledger beside a running server. Each returns the exit code.

All raise BadLedger with one line for the operator: a ledger, a cursor or a date that cannot be used.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import URL, Engine, RowMapping
from sqlalchemy.exc import SQLAlchemyError

from kleinserve.usage import database, records, sql_keys
from kleinserve.usage.ledger import BadLedger
from kleinserve.usage.schema import RECORD

TIMEOUT_SECONDS = 30.0
FOLLOW_SECONDS = 0.5
EVENT_TYPE = "klein.v1.usage"
EVENT_SOURCE = "/kleinserve/usage"


def export(ledger: str, after: str, follow: bool) -> int:
    """Print every record after the cursor `after` ("": all), in commit order, as CloudEvents 1.0, one JSON a line.

    An event's id is its record's, its `cursor` is what to resume after. At least once: who stops in between resumes at
    the last cursor that he has stored, and a billing system counts each id once. `follow`: go on as records come.
    """
    if not after.isascii() or not (after or "0").isdigit() or int(after or 0) >= 2**63:
        raise BadLedger(f"--after: {after!r} is not a cursor")
    with _opened(ledger, "read") as engine:
        try:
            _export(engine, int(after or 0), follow)
        except BrokenPipeError:  # whoever read has enough; nor can the interpreter's last flush say more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            pass
    return 0


def _export(engine: Engine, cursor: int, follow: bool) -> None:
    while True:
        rows = _next(engine, cursor, follow)
        for row in rows:
            sys.stdout.write(json.dumps(event(row), ensure_ascii=False, separators=(",", ":")) + "\n")
            cursor = row["position"]
        sys.stdout.flush()
        if not rows:
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)


def _next(engine: Engine, cursor: int, follow: bool) -> list[RowMapping]:
    try:
        with engine.begin() as connection:
            return list(records.after(connection, cursor))
    except SQLAlchemyError as error:
        if not follow:
            raise
        print(f"waiting for the ledger: {database.reason(error)}", file=sys.stderr)
        return []


def event(row: RowMapping) -> dict[str, Any]:
    """The record as a CloudEvent; times as RFC 3339, everything else as the record has it."""
    left_out = ("position", "record_id", "caller", "accept_microseconds", "end_microseconds")
    data = {name: row[name] for name in RECORD.c.keys() if name not in left_out}  # noqa: SIM118 - not a dict
    times = {"accept_time": _time(row["accept_microseconds"]), "end_time": _time(row["end_microseconds"])}
    return {
        "specversion": "1.0",
        "id": row["record_id"],
        "source": EVENT_SOURCE,
        "type": EVENT_TYPE,
        "subject": row["caller"],
        "time": times["end_time"],
        "datacontenttype": "application/json",
        "cursor": str(row["position"]),
        "data": {"caller": row["caller"]} | data | times,
    }


def _time(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"


def prune(ledger: str, before: str) -> int:
    """Delete the records, and forget the keys, of before the day `before` (YYYY-MM-DD, UTC). A server may be running.

    Totals of whole hours stay exact; a bound within an hour of that time means the beginning of the hour.
    """
    try:
        day = date.fromisoformat(before)
    except ValueError:
        raise BadLedger(f"--before: {before!r} is not a date as 2026-01-31") from None
    if day > datetime.now(UTC).date():
        raise BadLedger(f"--before: {before} lies in the future")
    microseconds = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000
    with _opened(ledger, "write") as engine:
        keys = sql_keys.prune(engine, microseconds)
        print(f"pruned {records.prune(engine, microseconds)} records and {keys} keys of before {day}")
    return 0


def migrate(ledger: str) -> int:
    """Bring the schema up to date. On PostgreSQL servers of the older version may be running; on SQLite none."""
    url = _location(ledger)
    owner = database.FileOwner(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    engine = database.connect(url, TIMEOUT_SECONDS, "write")
    try:
        database.migrate(engine)
        print(f"{database.shown(url)} has this version's schema")
    except SQLAlchemyError as error:
        raise BadLedger(f"--ledger: cannot migrate {database.shown(url)}: {database.reason(error)}") from error
    finally:
        engine.dispose()
        if owner:
            owner.release()
    return 0


def _location(ledger: str) -> URL:
    if ledger == "none":
        raise BadLedger("--ledger none: there is no ledger")
    return database.location(ledger)


@contextmanager
def _opened(ledger: str, use: Literal["read", "write"]) -> Iterator[Engine]:
    """The ledger as it is: nothing is made or migrated, nobody's hold on it matters."""
    url = _location(ledger)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise BadLedger(f"--ledger: there is no {url.database}")
    engine = database.connect(url, TIMEOUT_SECONDS, use)
    try:
        database.require_current(engine)
        yield engine
    except SQLAlchemyError as error:
        raise BadLedger(f"--ledger: cannot use {database.shown(url)}: {database.reason(error)}") from error
    finally:
        engine.dispose()
