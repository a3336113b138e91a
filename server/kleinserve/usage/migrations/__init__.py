"""The ledger's schema as it grew: Alembic runs what a database lacks."""
