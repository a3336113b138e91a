"""Calibration on the real engine and mini."""

import json
import statistics
import time
from pathlib import Path

import pytest
from kleinserve.config import load
from kleinserve.core import Operation, Request, Size
from kleinserve.engine import checkpoint
from kleinserve.engine.engine import Engine
from kleinserve.scheduler.calibrate import calibrated, measure
from kleinserve.scheduler.cost import STAGES, Cost
from kleinserve.scheduler.job import load_of


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(checkpoint.find("mini"), load({"threads": 1}))


ATTEMPTS = 3  # another process may take the machine for as long as one attempt, hardly for three


def lone_seconds(engine: Engine, cost: Cost, prompt: str) -> tuple[float, float]:
    """What a 192² request, a size that was not measured, is predicted to take, and what it takes."""
    drawing = engine.drawing(Request("x", Operation.GENERATE, prompt, (), Size(192, 192), 0, 4, 1.0))
    predicted = cost.idle(load_of(engine, drawing), 4)
    started = time.perf_counter()
    engine.begin([drawing])
    while not drawing.is_denoised:
        engine.step([drawing])
    engine.decode([drawing])
    return predicted, time.perf_counter() - started


def test_it_predicts_a_lone_request(engine: Engine) -> None:
    """The prediction is within a factor of two of what the request takes."""
    ratios = []
    for attempt in range(ATTEMPTS):
        cost = measure(engine)
        assert cost.saturating_tokens(engine.work_per_token) > 0
        tried = [lone_seconds(engine, cost, f"a prompt of its own {attempt} {i}") for i in range(3)]
        ratios.append(statistics.median(predicted / seconds for predicted, seconds in tried))
        if 0.5 < ratios[-1] < 2:
            return
    raise AssertionError(f"predicted by taken: {ratios}")


def test_it_ends_in_time_and_learns_from_one_image_at_least(engine: Engine) -> None:
    """With no time at all one image is made, and every stage has a cost that grows with the work."""
    cost = measure(engine, seconds_max=0.0)
    assert all(line.fixed == 0.0 and line.per_unit > 0.0 for line in cost.lines.values())


def test_what_was_found_is_kept_and_read_back(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start reads the first one's cost; a file that is broken is measured again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = calibrated(engine)
    (file,) = (tmp_path / "kleinserve").iterdir()
    assert set(json.loads(file.read_text())) == set(STAGES)
    assert calibrated(engine) == first
    file.write_text("{")
    assert calibrated(engine).is_calibrated
    assert set(json.loads(file.read_text())) == set(STAGES)


def test_a_home_that_cannot_be_written_does_not_stop_the_server(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost is used, only not kept."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibrated(engine).is_calibrated
