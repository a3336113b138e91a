"""A few kills of what `make crash` does a hundred times."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.run import crash
from tests.usage.postgres import Postgres


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


async def test_sqlite(tmp_path: Path) -> None:
    """What callers received whole is recorded once, also over four kills; each key brings its image, for one bill."""
    ran = await crash(f"sqlite:///{tmp_path}/usage.db", 4, seed=1)
    assert ran.received
    assert not ran.broken, ran.report()


async def test_postgresql(postgres: Postgres) -> None:
    """The same over two kills on PostgreSQL, where a killed server owns its keys for a while."""
    ran = await crash(postgres.database(), 2, seed=2)
    assert ran.received
    assert not ran.broken, ran.report()
