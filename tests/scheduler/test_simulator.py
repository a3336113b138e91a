"""The simulator takes the time that arithmetic says."""

import pytest

from tests.scheduler.simulator import KLEIN, LARGE, SMALL, Serve, Simulated, first_come, ours


@pytest.mark.parametrize("serve", [ours, first_come], ids=["ours", "first come"])
def test_a_lone_request_takes_its_lone_time(serve: Serve) -> None:
    """The loop adds nothing to the stages."""
    arrivals = [Simulated(size, 10.0 * i, KLEIN.alone(size)) for i, size in enumerate((SMALL, LARGE, SMALL))]
    serve(arrivals, KLEIN)
    assert [one.latency for one in arrivals] == [pytest.approx(one.alone) for one in arrivals]


def test_lone_times_are_the_limits_of_the_device() -> None:
    """29, 58, 193 and 1034 ms within a tenth, as shared arithmetic of the model and the device says; text besides."""
    for edge, milliseconds in ((256, 29), (512, 58), (1024, 193), (2048, 1034)):
        size = type(SMALL)(edge, edge)
        assert KLEIN.alone(size) * 1e3 == pytest.approx(milliseconds, rel=0.1)
