"""Calibration of a scripted engine, whose lines are known, and what is kept on disk."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from kleinserve.core import Size
from kleinserve.errors import AcceleratorOutOfMemory
from kleinserve.scheduler.calibrate import Bench, calibrate, measure
from kleinserve.scheduler.cost import STAGES, Cost, Line

from tests.scheduler.scripted import FACTS, Clock, ScriptedEngine, ScriptedRender

T = TypeVar("T")

TRUE = {"text": (0.01, 0.002), "references": (0.002, 0.04), "step": (0.003, 1e-5), "decode": (0.005, 0.08)}


class Machine:
    """An engine whose stages take what is `true`, and which of its two threads was asked what."""

    def __init__(self, factor: float = 1.0):
        lines = {stage: Line(*(factor * number for number in line)) for stage, line in TRUE.items()}
        self.clock = Clock()
        self.engine = ScriptedEngine(
            self.clock, lines["step"], lines["text"], lines["references"], lines["decode"], decode_pieces=3
        )
        self.engine.facts = replace(FACTS, default_size=Size(512, 512))
        self.on: dict[str, set[str]] = {"steps": set(), "aside": set()}

    def bench(self) -> Bench:
        def run(thread: str) -> Callable[[Callable[[], T]], T]:
            def call(function: Callable[[], T]) -> T:
                before = len(self.engine.calls)
                result = function()
                self.on[thread] |= {name for name, _ in self.engine.calls[before:]}
                return result

            return call

        return Bench(self.engine, run("steps"), run("aside"), self.clock)

    def is_found(self, cost: Cost) -> bool:
        """Whether the cost is what its stages take."""
        return all(
            cost.lines[stage].seconds(units) == pytest.approx(Line(*line).seconds(units), rel=0.02)
            for stage, line in TRUE.items()
            for units in (1, 1000)
        )


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """The file that a calibration was kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def find() -> Path:
        (file,) = (tmp_path / "kleinserve").iterdir()
        return file

    return find


def test_it_finds_what_the_stages_take() -> None:
    """Every line within a fiftieth, by runs of several sizes, alone and together; encoding is not the engine's."""
    machine = Machine()
    cost = measure(machine.bench(), seconds_max=100.0)
    assert machine.is_found(cost)
    assert cost.is_calibrated
    assert cost.lines["encode"] == Line()


def test_every_stage_is_measured_on_the_thread_that_will_serve_it(kept: Callable[[], Path]) -> None:
    """Steps on one, everything else on the other; both are warmed."""
    machine = Machine()
    calibrate(machine.bench())
    assert machine.on == {"steps": {"warm", "step"}, "aside": {"warm", "text", "begin", "decode"}}


def test_it_ends_in_time_and_learns_from_one_image_at_least() -> None:
    """With no time at all one image is made, and every stage has a cost that grows with the work."""
    cost = measure(Machine().bench(), seconds_max=0.0)
    lines = [cost.lines[stage] for stage in TRUE]
    assert all(line.fixed == 0.0 and line.per_unit > 0.0 for line in lines)


def test_it_makes_do_with_what_fits() -> None:
    """Where four images find no memory at once, one by one says it all."""
    machine = Machine()

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if len(renders) > 1:
            raise AcceleratorOutOfMemory("no room")

    machine.engine.failures["step"] = fail
    cost = measure(machine.bench(), seconds_max=100.0)
    assert cost.lines["step"].seconds(768) == pytest.approx(Line(*TRUE["step"]).seconds(768), rel=0.1)
    assert machine.engine.released > 0


def test_where_not_even_one_image_fits_the_start_fails() -> None:
    """It raises what a request would."""
    machine = Machine()

    def fail(renders: Sequence[ScriptedRender]) -> None:
        raise AcceleratorOutOfMemory("no room")

    machine.engine.failures["decode"] = fail
    with pytest.raises(AcceleratorOutOfMemory):
        measure(machine.bench())


def test_what_was_found_is_kept_and_read_back(kept: Callable[[], Path]) -> None:
    """The second start makes its warm-up images only, and predicts as the first one."""
    first, second = Machine(), Machine()
    cost = calibrate(first.bench())
    assert set(json.loads(kept().read_text())) == set(STAGES)
    assert calibrate(second.bench()) == cost
    assert len(second.engine.calls) < len(first.engine.calls) / 3


NUMBERS = {"words": "much", "NaN": float("nan"), "absurd": 1e6, "fast": 1e-12, "negative": -1.0}
CONTENTS = {
    "cut off": b"{",
    "a list": b"[]",
    "not JSON": b"words",
    "null": b"null",
    "another file": b'{"step": "fast"}',
    "NaN alone": b"NaN",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    **NUMBERS,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_cannot_be_right_is_measured_anew_and_overwritten(
    content: bytes | str | float, kept: Callable[[], Path]
) -> None:
    """Broken, foreign, words, NaN, numbers that no machine has: the start is as the first one."""
    machine = Machine()
    good = calibrate(machine.bench())
    if not isinstance(content, bytes):
        bad = json.loads(kept().read_text())
        bad["decode"] |= {"fixed": content, "per_unit": content}
        content = json.dumps(bad).encode()
    kept().write_bytes(content)
    assert machine.is_found(calibrate(machine.bench()))
    again = Cost.load(json.loads(kept().read_text()))
    assert again.lines["decode"].seconds(1) == pytest.approx(good.lines["decode"].seconds(1))


def test_another_machine_s_calibration_is_measured_anew(kept: Callable[[], Path]) -> None:
    """A home that came with an image from a machine fifty times as fast."""
    calibrate(Machine(factor=0.02).bench())
    machine = Machine()
    assert machine.is_found(calibrate(machine.bench()))


def test_a_home_that_cannot_be_written_does_not_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost is used, only not kept."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    machine = Machine()
    assert machine.is_found(calibrate(machine.bench()))


def test_a_user_without_a_home_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number as user, no HOME: nothing is written anywhere, least of all to a directory named ~."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    machine = Machine()
    assert machine.is_found(calibrate(machine.bench()))
    assert list(tmp_path.iterdir()) == []
