"""The callers' buckets of megapixels, shared by all servers."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "bucket",
        sa.Column("caller", sa.String, primary_key=True),
        sa.Column("debt_grains", sa.BigInteger, nullable=False),
        sa.Column("refill", sa.BigInteger, nullable=False),
        sa.Column("at_microseconds", sa.BigInteger, nullable=False),
    )
