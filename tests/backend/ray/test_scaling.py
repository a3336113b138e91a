"""How many replicas there are to be."""

from types import SimpleNamespace

import pytest
from kleinserve.backend.ray.scaling import BUSY_SECONDS, BUSY_SECONDS_EACH, by_busy_seconds


@pytest.mark.parametrize(
    ("busy", "wanted"), [([0.0, 0.0], 0), ([0.1, 0.0], 1), ([1.9, 2.0], 2), ([9.0, 0.5], 5), ([2.0] * 7, 7)]
)
def test_by_work(busy: list[float], wanted: int) -> None:
    """There are enough when each has two seconds of work before it; whose they are does not matter."""
    assert BUSY_SECONDS_EACH == 2.0
    told = {BUSY_SECONDS: dict(enumerate(busy))}
    assert by_busy_seconds(SimpleNamespace(aggregated_metrics=told, target_num_replicas=3))[0] == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [None, {}, {BUSY_SECONDS: {}}])
def test_nothing_known(told: object) -> None:
    """As long as no replica has spoken there are as many as before."""
    assert by_busy_seconds(SimpleNamespace(aggregated_metrics=told, target_num_replicas=3))[0] == 3  # type: ignore[arg-type]
