"""A ledger's schema: made where there is none, brought up to date where that is safe, refused where it is not."""

import asyncio
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from kleinserve.usage import commands, database
from kleinserve.usage.ledger import BadLedger
from kleinserve.usage.schema import METADATA
from kleinserve.usage.sql import SqlLedger
from sqlalchemy import text

from tests.usage.postgres import Postgres
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


def make_older(url: str) -> None:
    """The database as the first version made it."""
    engine = database.connect(database.location(url), 30.0, "write")
    with engine.begin() as connection:
        alembic.command.upgrade(database.alembic_config(connection), "0001")
    engine.dispose()


async def test_an_older_file_is_migrated_at_start(tmp_path: Path) -> None:
    """A SQLite file of an older version has the present schema, and its records, once a server has opened it."""
    url = f"sqlite:///{tmp_path}/usage.db"
    make_older(url)
    await SqlLedger(url).close()
    assert rows(url, "SELECT count(*) FROM job") == [(0,)]


async def test_an_older_postgresql_is_migrated_by_command(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """A PostgreSQL of an older version is refused with the command to run, and accepted after it."""
    url = postgres.database()
    make_older(url)
    for use in (SqlLedger, lambda url: commands.export(url, "", follow=False)):
        with pytest.raises(BadLedger, match=r"--ledger: .* older than this version: run `kleinserve usage migrate`"):
            use(url)
    assert commands.migrate(url) == 0
    assert "has this version's schema" in capsys.readouterr().out
    await SqlLedger(url).close()


async def test_servers_that_start_together_make_one_schema(postgres: Postgres) -> None:
    """Several servers that open an empty PostgreSQL at once all succeed."""
    url = postgres.database()
    ledgers = await asyncio.gather(*(asyncio.to_thread(SqlLedger, url) for _ in range(4)))
    for ledger in ledgers:
        await ledger.close()


@pytest.mark.parametrize("url", ["postgresql://web:s3cret@host/db", "postgresql://web@host/db?password=s3cret"])
def test_a_password_is_not_shown(url: str) -> None:
    """Neither as a part of the URL nor as a parameter of it."""
    shown = database.shown(database.location(url))
    assert "s3cret" not in shown
    assert "host/db" in shown
