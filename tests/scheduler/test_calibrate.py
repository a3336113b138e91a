"""Calibration on the real engine and mini."""

import json
import time
from pathlib import Path

import pytest
from kleinserve.config import load
from kleinserve.core import Operation, Request, Size
from kleinserve.engine import checkpoint
from kleinserve.engine.engine import Engine
from kleinserve.scheduler.calibrate import calibrated, measure
from kleinserve.scheduler.cost import STAGES
from kleinserve.scheduler.job import load_of


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(checkpoint.find("mini"), load({"threads": 1}))


def test_it_predicts_a_lone_request(engine: Engine) -> None:
    """The prediction of a 192² request, a size that was not measured, is within a factor of two of what it takes."""
    cost = measure(engine)
    request = Request("x", Operation.GENERATE, "a prompt of its own", (), Size(192, 192), 0, 4, 1.0)
    seconds = []
    for attempt in range(3):
        started = time.perf_counter()
        drawing = engine.drawing(Request(**(vars(request) | {"prompt": f"{request.prompt} {attempt}"})))
        predicted = cost.idle(load_of(engine, drawing), 4)
        engine.begin([drawing])
        while not drawing.is_denoised:
            engine.step([drawing])
        engine.decode([drawing])
        seconds.append(time.perf_counter() - started)
    assert min(seconds) / 2 < predicted < 2 * max(seconds)
    assert cost.saturating_tokens(engine.work_per_token) > 0


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
