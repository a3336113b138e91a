"""Records and their totals by the hour and by the day."""

import os

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    ledger = op.create_table(
        "ledger",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("pruned_microseconds", sa.BigInteger, nullable=False),
        sa.Column("probe", sa.LargeBinary, nullable=False),
    )
    op.bulk_insert(ledger, [{"id": 1, "salt": os.urandom(32), "pruned_microseconds": 0, "probe": b""}])
    op.create_table(
        "record",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("record_id", sa.String, nullable=False, unique=True),
        *(
            sa.Column(name, sa.String, nullable=False)
            for name in ("request_id", "caller", "client_tag", "model", "operation", "outcome", "reason")
        ),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("output_pixels", "output_megapixels", "reference_megapixels", "cost_microusd")
        ),
        sa.Column("billable", sa.Boolean, nullable=False),
        sa.Column("price_version", sa.String, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("width", "height", "reference_count", "steps_run")),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("accelerator_microseconds", "accept_microseconds", "end_microseconds")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("record_caller_position", "record", ["caller", "position"])
    op.create_table(
        "total",
        sa.Column("span_microseconds", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("start_microseconds", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("caller", sa.String, primary_key=True),
        sa.Column("operation", sa.String, primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in (
                "requests",
                "images",
                "output_megapixels",
                "reference_megapixels",
                "cost_microusd",
                "first_position",
                "last_position",
            )
        ),
        sqlite_with_rowid=False,
    )
