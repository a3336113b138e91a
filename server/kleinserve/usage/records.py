"""Reads and writes records and their totals inside a transaction that somebody else began.

Commit order. On SQLite there is one writer, so positions grow as transactions commit. On PostgreSQL every transaction
that writes takes one advisory lock first (`in_turn`) and holds it until it has committed: the next position is given
only when all earlier ones can be seen. So whoever has read up to a position has missed nothing before it. The lock also
keeps two servers from waiting for one another's rows in circles. It costs little: a transaction holds all that waited.
"""

import functools
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    Table,
    case,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from kleinserve.core import Operation, UsageRecord
from kleinserve.errors import InvalidField, Violation, quoted
from kleinserve.usage import schema
from kleinserve.usage.database import WRITE_LOCK
from kleinserve.usage.ledger import UsageTotal
from kleinserve.usage.schema import LEDGER, RECORD, TOTAL

HOUR = 3_600_000_000  # microseconds
DAY = 24 * HOUR
PAGE_RECORDS = 500
PRUNE_POSITIONS = 2000  # looked at in one transaction
PROBE_BYTES = 64 * 1024  # a disk that has room for this has room for a few deliveries

_AMOUNTS = ("requests", "images", "output_megapixels", "reference_megapixels", "cost_microusd")


def in_turn(connection: Connection) -> None:
    """Begin to write: on PostgreSQL, when the transactions of all other servers have committed. Notes the time."""
    if connection.dialect.name == "postgresql":
        connection.info["now"] = int(connection.execute(_TURN).one()[1])
    else:
        connection.info["now"] = time.time_ns() // 1000


_TURN = text(f"SELECT pg_advisory_xact_lock({WRITE_LOCK}), extract(epoch FROM clock_timestamp()) * 1000000")


def now(connection: Connection) -> int:
    """When this turn began, in microseconds since 1970, by the clock of all who share the database."""
    return int(connection.info["now"])


def insert(dialect: str, table: Table) -> Any:
    """SQLAlchemy's insert with `on_conflict_…`, which each dialect has for itself under the same name."""
    return {"postgresql": postgresql, "sqlite": sqlite}[dialect].insert(table)


def add_all(connection: Connection, new: Sequence[UsageRecord]) -> None:
    """Insert and count each."""
    for record in new:
        add(connection, record)


def add(connection: Connection, record: UsageRecord) -> None:
    """Insert `record` and count it in its hour and its day; if its id is there already, nothing."""
    statement, count = _statements(connection.dialect.name)
    position = connection.execute(statement, schema.values(record)).scalar()
    if position is not None:
        new = _amounts(record) | {"first_position": position, "last_position": position}
        connection.execute(count, [new | cell for cell in _counted_in(record)])


def replace(connection: Connection, record_id: str, record: UsageRecord) -> None:
    """Add `record`; where `record_id` is there, that one is taken out first, and out of its hour and its day."""
    former = delete(RECORD).where(RECORD.c.record_id == record_id).returning(*RECORD.c)
    for row in connection.execute(former).mappings().all():
        gone = schema.record(row)
        less = {name: TOTAL.c[name] - amount for name, amount in _amounts(gone).items()}
        for cell in _counted_in(gone):
            mine = [TOTAL.c[name] == value for name, value in cell.items()]
            connection.execute(update(TOTAL).where(*mine).values(less))
            connection.execute(delete(TOTAL).where(*mine, TOTAL.c.requests == 0))
    add(connection, record)


def _amounts(record: UsageRecord) -> dict[str, int]:
    """What the record adds to its totals."""
    paid = record.usage.billable
    return {name: getattr(record.usage, name) * paid for name in _AMOUNTS[2:]} | {"requests": 1, "images": int(paid)}


def _counted_in(record: UsageRecord) -> list[dict[str, Any]]:
    """The keys of its hour's and its day's totals."""
    of, end = {"caller": record.caller, "operation": record.operation.value}, record.end_microseconds
    return [of | {"span_microseconds": span, "start_microseconds": end - end % span} for span in (HOUR, DAY)]


@functools.cache
def _statements(dialect: str) -> tuple[Any, Any]:
    record = insert(dialect, RECORD).on_conflict_do_nothing(index_elements=["record_id"])
    count = insert(dialect, TOTAL)
    new = count.excluded
    sums = {name: TOTAL.c[name] + new[name] for name in _AMOUNTS} | {"last_position": new["last_position"]}
    count = count.on_conflict_do_update(index_elements=list(TOTAL.primary_key), set_=sums)
    return record.returning(RECORD.c.position), count


def probe(connection: Connection) -> None:
    """Find out whether writing works."""
    connection.execute(update(LEDGER).values(probe=os.urandom(PROBE_BYTES)))


def _cells(start: int, end: int, spans: tuple[int, ...] = (DAY, HOUR)) -> list[tuple[int, int, int]]:
    """[start, end) in whole days, whole hours, and what is left: (span, start, end) each, span 0 for what is left."""
    if start >= end:
        return []
    if not spans:
        return [(0, start, end)]
    span, *smaller = spans
    first, last = -(-start // span) * span, end // span * span
    if first >= last:
        return _cells(start, end, tuple(smaller))
    edges = _cells(start, first, tuple(smaller)) + _cells(last, end, tuple(smaller))
    return [(span, first, last), *edges]


def totals(connection: Connection, start: int, end: int, caller: str | None) -> list[UsageTotal]:
    """Totals over [start, end): of whole days and hours from their totals, of what is left from the records.

    Where records were pruned an hour cannot be divided: there a bound means the beginning of its hour.
    """
    pruned = connection.execute(select(LEDGER.c.pruned_microseconds)).scalar_one()
    start, end = (bound // HOUR * HOUR if bound < pruned else bound for bound in (start, end))
    sums: Counter[tuple[str, str, str]] = Counter()
    for span, first, last in _cells(start, end):
        statement = _of_totals(span, first, last, caller) if span else _of_records(connection, first, last, caller)
        for row in connection.execute(statement).mappings():
            for name in _AMOUNTS:
                sums[row["caller"], row["operation"], name] += int(row[name])
    keys = {(caller, Operation(operation)) for caller, operation, _ in sums}
    order = sorted(keys, key=lambda key: (key[0], list(Operation).index(key[1])))
    return [UsageTotal(*key, *(sums[key[0], key[1].value, name] for name in _AMOUNTS)) for key in order]


def _of_totals(span: int, start: int, end: int, caller: str | None) -> Select[Any]:
    columns = TOTAL.c
    return (
        select(columns.caller, columns.operation, *(func.sum(columns[name]).label(name) for name in _AMOUNTS))
        .where(*_within_cells(span, start, end, caller))
        .group_by(columns.caller, columns.operation)
    )


def _of_records(connection: Connection, start: int, end: int, caller: str | None) -> Select[Any]:
    columns = RECORD.c
    paid = {name: func.sum(case((columns.billable, columns[name]), else_=0)).label(name) for name in _AMOUNTS[2:]}
    images = func.sum(case((columns.billable, 1), else_=0)).label("images")
    return (
        select(columns.caller, columns.operation, func.count().label("requests"), images, *paid.values())
        .where(*_within(start, end, caller, *positions(connection, start, end, caller)))
        .group_by(columns.caller, columns.operation)
    )


def positions(connection: Connection, start: int, end: int, caller: str | None) -> tuple[int, int]:
    """The first and last position that records of [start, end) can have; (0, -1) if there is none."""
    columns = TOTAL.c
    bounds = select(func.min(columns.first_position), func.max(columns.last_position))
    cells = _cells(start // HOUR * HOUR, -(-end // HOUR) * HOUR)
    asked = [connection.execute(bounds.where(*_within_cells(*cell, caller))).one() for cell in cells]
    found = [(row[0], row[1]) for row in asked if row[0] is not None]
    return (min(found)[0], max(last for _, last in found)) if found else (0, -1)


def _within_cells(span: int, start: int, end: int, caller: str | None) -> list[ColumnElement[bool]]:
    columns = TOTAL.c
    conditions = [columns.span_microseconds == span, columns.start_microseconds >= start]
    conditions.append(columns.start_microseconds < end)
    return conditions if caller is None else [*conditions, columns.caller == caller]


def _within(start: int, end: int, caller: str | None, first: int, last: int) -> list[ColumnElement[bool]]:
    columns = RECORD.c
    conditions = [columns.position.between(first, last), columns.end_microseconds >= start]
    conditions.append(columns.end_microseconds < end)
    return conditions if caller is None else [*conditions, columns.caller == caller]


def position(connection: Connection, record_id: str, caller: str | None) -> int:
    """Where the record stands. Raises: InvalidField, where `caller` has no such record, or no longer."""
    statement = select(RECORD.c.position, RECORD.c.caller).where(RECORD.c.record_id == record_id)
    row = connection.execute(statement).one_or_none()
    if row is None or caller not in (None, row.caller):
        raise InvalidField(Violation("after_record_id", f"{quoted(record_id)} is not the id of a record"))
    return int(row.position)


def page(connection: Connection, bounds: tuple[int, int, str | None], first: int, last: int) -> Sequence[RowMapping]:
    """The first PAGE_RECORDS rows of `bounds` with positions from `first` to `last`, in commit order."""
    statement = select(RECORD).where(*_within(*bounds, first, last))
    return connection.execute(statement.order_by(RECORD.c.position).limit(PAGE_RECORDS)).mappings().all()


def after(connection: Connection, cursor: int) -> Sequence[RowMapping]:
    """The next PAGE_RECORDS rows after the position `cursor`, in commit order."""
    statement = select(RECORD).where(RECORD.c.position > cursor).order_by(RECORD.c.position).limit(PAGE_RECORDS)
    return connection.execute(statement).mappings().all()


def prune(engine: Engine, before: int) -> int:
    """Delete the records that ended before `before`, a whole hour; how many. The hours' totals stay.

    In small transactions, so that a running server's commits pass between them.
    """
    with engine.begin() as connection:
        first = connection.execute(select(func.min(RECORD.c.position))).scalar() or 0
        _, last = positions(connection, 0, before, None)
        later = LEDGER.c.pruned_microseconds < before
        connection.execute(update(LEDGER).where(later).values(pruned_microseconds=before))
    deleted = 0
    for start in range(first, last + 1, PRUNE_POSITIONS):
        old = RECORD.c.position.between(start, min(last, start + PRUNE_POSITIONS - 1))
        with engine.begin() as connection:
            deleted += connection.execute(delete(RECORD).where(old, RECORD.c.end_microseconds < before)).rowcount
    return deleted
