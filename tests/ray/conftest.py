"""One cluster for all tests: two fronts, two replicas."""

from collections.abc import Iterator

import pytest

from tests.ray.cluster import SETTINGS, Cluster, cluster


@pytest.fixture(scope="session")
def deployed() -> Iterator[Cluster]:
    with cluster() as made:
        made.deploy(SETTINGS)
        made.wait()
        yield made


@pytest.fixture
def whole(deployed: Cluster) -> Cluster:
    """The cluster with all its fronts and replicas, whatever the test before did to them."""
    for deployment in ("Front", "Replica"):
        deployed.until_gone(deployment, set(), 2)
    return deployed
