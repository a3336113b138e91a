"""Two servers on one PostgreSQL, and Envoy before them."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.e2e.forked import Forked
from tests.replicas.cluster import Envoy, Server, envoy, servers
from tests.usage.conftest import postgres as postgres
from tests.usage.postgres import Postgres

OWNER_SECONDS = 6.0  # long enough for a busy machine's beats, short enough to wait for
MAX_STEPS = 5000  # none that is asked for so many ends by itself


class Books:
    """What the database holds."""

    def __init__(self, url: str):
        self.url = url

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
            return connection.execute(statement, values).fetchall()  # type: ignore[call-overload,no-any-return]

    def billed(self, request_ids: list[str]) -> int:
        """How many billable records these requests have."""
        told = self.rows("SELECT count(*) FROM record WHERE billable AND request_id = ANY(%s)", request_ids)
        return int(str(told[0][0]))

    def billed_for(self, client_tags: list[str]) -> list[int]:
        """How many billable records each of these has."""
        told = self.rows("SELECT client_tag, count(*) FROM record WHERE billable GROUP BY client_tag")
        counts = {str(tag): int(str(count)) for tag, count in told}
        return [counts.get(tag, 0) for tag in client_tags]

    def owner(self, key: str) -> str:
        """The name of the server that has a key; "": nobody."""
        rows = self.rows("SELECT owner FROM job WHERE key = %s", key)
        return str(rows[0][0]) if rows else ""


@pytest.fixture(scope="session")
def books(postgres: Postgres) -> Books:
    return Books(postgres.database())


@pytest.fixture(scope="session")
def started(books: Books, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    settings = {"OWNER_SECONDS": str(OWNER_SECONDS), "MAX_STEPS": str(MAX_STEPS), "DRAIN_NOTICE_SECONDS": "3"}
    with servers(books.url, tmp_path_factory.mktemp("pair"), start=Forked, **settings) as (first, second):
        yield first, second


@pytest.fixture
def pair(started: tuple[Server, Server]) -> tuple[Server, Server]:
    """Both serve, whatever the test before did to them."""
    ended = [server for server in started if not server.is_alive]
    for server in ended:
        server.begin()
    for server in ended:
        server.wait()
    return started


@pytest.fixture(scope="session")
def balancer(started: tuple[Server, Server]) -> Iterator[Envoy]:
    with envoy(*started) as made:
        yield made


@pytest.fixture
def front(pair: tuple[Server, Server], balancer: Envoy) -> str:
    """The target of Envoy before both, which it finds healthy."""
    balancer.until_healthy(*pair)
    return balancer.target
