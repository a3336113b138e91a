"""The cost model's arithmetic."""

import pytest
from kleinserve.core import Demand
from kleinserve.scheduler.cost import STAGES, Cost, Line, Share


@pytest.mark.parametrize(
    ("points", "fixed", "per_unit"),
    [
        ([(1, 3.0), (2, 5.0), (4, 9.0)], 1.0, 2.0),
        ([(5, 10.0)], 0.0, 2.0),
        ([(1, 1.0), (2, 3.0)], 0.0, None),  # the best line would start below zero
        ([(1, 3.0), (2, 2.0)], None, 0.0),  # more work cannot take less time
    ],
)
def test_a_line_goes_through_what_was_measured(
    points: list[tuple[float, float]], fixed: float | None, per_unit: float | None
) -> None:
    """Least squares, nothing negative; a single measurement is all per unit."""
    line = Line.through(points)
    assert line.fixed == (pytest.approx(fixed, abs=1e-9) if fixed is not None else line.fixed)
    assert line.per_unit == (pytest.approx(per_unit, abs=1e-9) if per_unit is not None else line.per_unit)
    assert min(line.fixed, line.per_unit) >= 0


def test_a_line_follows_a_machine_that_becomes_slower() -> None:
    """After thirty measurements of twice the time the prediction is within a tenth, and says its error on the way."""
    line = Line(0.0, 1.0)
    errors = [line.observe(2, 4.0) for _ in range(30)]
    assert errors[0] == pytest.approx(0.5)
    assert line.seconds(2) == pytest.approx(4.0, rel=0.1)
    assert errors[-1] < 0.1


def test_one_disturbed_measurement_moves_it_little() -> None:
    """A step that took a thousand times as long does not even double the next prediction."""
    line = Line(0.0, 1.0)
    line.observe(1, 1000.0)
    assert line.seconds(1) < 2.0


def known() -> Cost:
    lines = {stage: Line(0.1, 1.0) for stage in STAGES}
    return Cost({**lines, "step": Line(0.5, 0.25)}, is_calibrated=True)


def test_a_request_costs_its_stages() -> None:
    """Text, references, steps, decode and encode once each; what is begun has paid for its beginning."""
    demand = Demand(work=2.0, tokens=10, output_megapixels=3.0, reference_megapixels=2.0)
    assert known().remaining(demand, 4, is_begun=False) == pytest.approx(1.1 + 2.1 + 4 * 1.0 + 3.1 + 3.1)
    assert known().remaining(demand, 1, is_begun=True) == pytest.approx(1.0 + 3.1 + 3.1)
    share = known().share(demand, 4, is_begun=True)
    assert share == Share(pytest.approx(4 * 0.25 * 2.0 / 0.95), pytest.approx(3.1))


def test_the_saturating_budget_is_where_a_twentieth_of_a_step_is_fixed() -> None:
    """Nineteen times the fixed part in work; unknown before calibration."""
    assert known().saturating_tokens(work_per_token=0.01) == 3800
    assert Cost().saturating_tokens(0.01) == 0


def test_load_makes_predictions_longer_and_an_idle_server_s_not() -> None:
    """What an idle server could do does not follow the slowness of a busy one."""
    cost, demand = known(), Demand(2.0, 10, 1.0, 0.0)
    idle = cost.idle(demand, 4)
    for _ in range(50):
        cost.observe("step", 2.0, 3.0)
    assert cost.idle(demand, 4) == idle
    assert cost.remaining(demand, 4, is_begun=False) > 1.5 * idle


def test_what_is_kept_on_disk_reads_back() -> None:
    """The lines survive; the drift of one run does not; another file's content is refused."""
    cost = known()
    cost.observe("step", 2.0, 9.0)
    again = Cost.load(cost.dump())
    assert again.lines["step"] == Line(0.5, 0.25)
    assert again.is_calibrated
    with pytest.raises((KeyError, TypeError)):
        Cost.load({"step": {"fixed": 1.0}})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 1e9])
def test_numbers_that_no_stage_can_take_are_refused(bad: float) -> None:
    """NaN, infinity, less than nothing, years."""
    dumped = known().dump()
    dumped["decode"]["per_unit"] = bad
    with pytest.raises(ValueError, match="decode"):
        Cost.load(dumped)


def test_words_are_refused() -> None:
    """A number written as a word is no number."""
    dumped: dict[str, dict[str, object]] = {stage: dict(line) for stage, line in known().dump().items()}
    dumped["text"]["fixed"] = "fast"
    with pytest.raises((TypeError, ValueError)):
        Cost.load(dumped)  # type: ignore[arg-type]


def test_a_frozen_copy_stays_and_says_when_it_is_left_behind() -> None:
    """The copy does not follow; it differs once the machine is a fifth slower, not before."""
    cost = known()
    frozen = cost.frozen()
    assert not cost.differs(frozen, 0.2)
    for _ in range(30):
        cost.observe("step", 2.0, 3.0)
    assert cost.differs(frozen, 0.2)
    assert frozen.lines["step"] == Line(0.5, 0.25)


def test_a_stage_that_was_never_measured_is_not_known() -> None:
    """No points, or points without seconds, make a line without seconds."""
    assert Line.through([]) == Line.through([(1.0, 0.0)]) == Line()
