"""The tables, and how a record becomes a row. The migrations make the tables; a test compares the two."""

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, RowMapping, String, Table

from kleinserve.core import Operation, Outcome, Size, Usage, UsageRecord

METADATA = MetaData()

LEDGER = Table(  # one row
    "ledger",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("salt", LargeBinary, nullable=False),  # of the digests that keys are compared by
    Column("pruned_microseconds", BigInteger, nullable=False),  # records that ended before this are gone
    Column("probe", LargeBinary, nullable=False),  # rewritten to find out whether writing works again
)

RECORD = Table(
    "record",
    METADATA,
    # The place in commit order. Only an INTEGER PRIMARY KEY is SQLite's own row id.
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("record_id", String, nullable=False, unique=True),  # what makes an insert safe to repeat
    Column("request_id", String, nullable=False),
    Column("caller", String, nullable=False),
    Column("client_tag", String, nullable=False),
    Column("model", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("output_pixels", BigInteger, nullable=False),
    Column("output_megapixels", BigInteger, nullable=False),
    Column("reference_megapixels", BigInteger, nullable=False),
    Column("cost_microusd", BigInteger, nullable=False),
    Column("billable", Boolean, nullable=False),
    Column("price_version", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("reference_count", Integer, nullable=False),
    Column("steps_run", Integer, nullable=False),
    Column("accelerator_microseconds", BigInteger, nullable=False),
    Column("accept_microseconds", BigInteger, nullable=False),
    Column("end_microseconds", BigInteger, nullable=False),
    Index("record_caller_position", "caller", "position"),
    sqlite_autoincrement=True,  # a pruned position is never given again: cursors stay valid
)

# What one caller used by one operation in each hour and each day (UTC) of the records' end times, kept in the same
# transaction as the records. The positions say where in RECORD that time lies, so that no index of end times is needed.
TOTAL = Table(
    "total",
    METADATA,
    Column("span_microseconds", BigInteger, primary_key=True, autoincrement=False),  # an hour or a day
    Column("start_microseconds", BigInteger, primary_key=True, autoincrement=False),
    Column("caller", String, primary_key=True),
    Column("operation", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("output_megapixels", BigInteger, nullable=False),
    Column("reference_megapixels", BigInteger, nullable=False),
    Column("cost_microusd", BigInteger, nullable=False),
    Column("first_position", BigInteger, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

USAGE_COLUMNS = (
    "output_pixels",
    "output_megapixels",
    "reference_megapixels",
    "cost_microusd",
    "billable",
    "price_version",
)

JOB = Table(  # the request of a key
    "job",
    METADATA,
    Column("caller", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("request_id", String, nullable=False),
    Column("seed", String, nullable=False),  # 64 bits without a sign, which no integer column holds
    Column("state", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # of the owner, when it claimed the key
    Column("record_id", String, nullable=False),
    Column("output_pixels", BigInteger),
    Column("output_megapixels", BigInteger),
    Column("reference_megapixels", BigInteger),
    Column("cost_microusd", BigInteger),
    Column("billable", Boolean),
    Column("price_version", String),
    Column("create_microseconds", BigInteger, nullable=False),
    Index("job_age", "create_microseconds"),
    Index("job_caller_state_age", "caller", "state", "create_microseconds"),
    sqlite_with_rowid=False,
)

OWNER = Table(  # a server; a later process in its place has the next epoch
    "owner",
    METADATA,
    Column("id", String, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("address", String, nullable=False),
    Column("alive_until_microseconds", BigInteger, nullable=False),
)

BUCKET = Table(  # of a caller's megapixels a minute; a grain is a 60,000,000th of one (buckets.py)
    "bucket",
    METADATA,
    Column("caller", String, primary_key=True),
    Column("debt_grains", BigInteger, nullable=False),  # what it lacked
    Column("refill", BigInteger, nullable=False),  # grains a microsecond
    Column("at_microseconds", BigInteger, nullable=False),
)

_SAME = (  # columns named as the record's fields
    "record_id",
    "request_id",
    "caller",
    "model",
    "reason",
    "steps_run",
    "accelerator_microseconds",
    "accept_microseconds",
    "end_microseconds",
)


def values(record: UsageRecord) -> dict[str, Any]:
    """The row of `record`, without its position."""
    return {
        **{name: getattr(record, name) for name in _SAME},
        **{name: getattr(record.usage, name) for name in USAGE_COLUMNS},
        "client_tag": record.client_tag.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # PostgreSQL has no NUL in text
        "operation": record.operation.value,
        "outcome": record.outcome.value,
        "width": record.size.width,
        "height": record.size.height,
        "reference_count": record.references,
    }


def record(row: RowMapping) -> UsageRecord:
    """The record that `values` made `row` of."""
    return UsageRecord(
        **{name: row[name] for name in _SAME},
        usage=Usage(**{name: row[name] for name in USAGE_COLUMNS}),
        client_tag=row["client_tag"],
        operation=Operation(row["operation"]),
        outcome=Outcome(row["outcome"]),
        size=Size(row["width"], row["height"]),
        references=row["reference_count"],
    )
