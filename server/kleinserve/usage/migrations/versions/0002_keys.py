"""Idempotency keys, and the servers that own them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("caller", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("request_id", "seed", "state", "owner")),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("record_id", sa.String, nullable=False),
        *(
            sa.Column(name, sa.BigInteger)
            for name in ("output_pixels", "output_megapixels", "reference_megapixels", "cost_microusd")
        ),
        sa.Column("billable", sa.Boolean),
        sa.Column("price_version", sa.String),
        sa.Column("create_microseconds", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("job_age", "job", ["create_microseconds"])
    op.create_index("job_caller_state_age", "job", ["caller", "state", "create_microseconds"])
    op.create_table(
        "owner",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("alive_until_microseconds", sa.BigInteger, nullable=False),
    )
