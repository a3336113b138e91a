"""A ledger's schema: made where there is none, brought up to date where that is safe, refused where it is not."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from kleinserve.usage import commands, database
from kleinserve.usage.ledger import BadLedger
from kleinserve.usage.schema import METADATA
from kleinserve.usage.sql import SqlLedger
from sqlalchemy import text

from tests.usage.some import rows


def change(url: str, statement: str) -> None:
    engine = database.connect(database.location(url), 30.0, "write")
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


async def test_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    """An empty database that a server has opened has exactly the tables, columns and indexes of schema.py."""
    await SqlLedger(url).close()
    engine = database.connect(database.location(url), 30.0, "read")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


async def test_the_salt_is_made_once(url: str) -> None:
    """A ledger that is opened again has the salt that it was made with."""
    salts = []
    for _ in range(2):
        await SqlLedger(url).close()
        salts += rows(url, "SELECT salt FROM ledger")
    assert salts[0] == salts[1]
    assert len(salts[0][0]) == 32


async def test_a_newer_schema_is_refused(url: str) -> None:
    """A database that a newer version has migrated is left alone, by servers and commands."""
    await SqlLedger(url).close()
    change(url, "UPDATE alembic_version SET version_num = '9999'")
    for use in (SqlLedger, commands.migrate, lambda url: commands.export(url, "", follow=False)):
        with pytest.raises(BadLedger, match="--ledger: the database has the schema 9999, of a newer kleinserve"):
            use(url)
