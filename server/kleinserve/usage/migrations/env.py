"""Alembic runs this: every migration that the given connection lacks, inside the transaction that it has begun."""

from alembic import context

# SQLite's DDL is transactional too: a server killed in the middle of a migration leaves the older schema.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
