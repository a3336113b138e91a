"""One cluster for all tests: two fronts that share a PostgreSQL, two replicas."""

from collections.abc import Iterator

import pytest

from tests.ray.cluster import Cluster, cluster
from tests.usage.conftest import postgres as postgres
from tests.usage.postgres import Postgres


@pytest.fixture(scope="session")
def deployed(postgres: Postgres) -> Iterator[Cluster]:
    with cluster(postgres.database()) as made:
        made.deploy()
        made.wait()
        yield made


@pytest.fixture
def whole(deployed: Cluster) -> Cluster:
    """The cluster with all its fronts and replicas, whatever the test before did to them."""
    for deployment in ("Front", "Replica"):
        deployed.until_gone(deployment, set(), 2)
    return deployed
