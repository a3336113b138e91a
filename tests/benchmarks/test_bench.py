"""The bench's whole way in its tiny form: it measures nothing worth reading, and cannot rot."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import plot

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    return done.stdout


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Future[str]]]:
    """The bench of a GPU begins first and goes on beside the other: its folder, and what it will have said."""
    folder = tmp_path_factory.mktemp("gpu")
    arguments = ("gpu", "--device", "cpu", "--contestants", "ours,lock", "--folder", str(folder))
    with ThreadPoolExecutor() as pool:
        yield folder, pool.submit(bench, *arguments, BENCH_STAND_INS="1")


@pytest.fixture(scope="module")
def folder(gpu: tuple[Path, Future[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    bench("tiny", "--folder", str(folder))
    return folder


def test_contestants_answer(folder: Path) -> None:
    """Ours, the lock and the micro-batches answer a Poisson load and a burst whole, with a preview before the image."""
    contestants = json.loads((folder / "tiny.json").read_text())["contestants"]
    assert list(contestants) == ["ours", "lock", "window"]
    for found in contestants.values():
        for name in ("80", "burst"):
            of = found["loads"][name]
            assert of["answered"] == of["requests"]
            assert 0 < of["first_preview_seconds"]["value"] < of["mean_seconds"]["value"]
        assert 0 <= found["deadlines"]["met_of_admitted"]["value"] <= 1
        assert found["memory_bytes"] > 100e6


def test_stages_are_told(folder: Path) -> None:
    """Of ours, every stage's share of the time is in the numbers and in the table."""
    stages = json.loads((folder / "tiny.json").read_text())["contestants"]["ours"]["loads"]["80"]["stage_seconds"]
    assert set(stages) == {"text", "references", "step", "decode", "encode"}
    assert all(stages[stage] > 0 for stage in ("text", "step", "decode", "encode"))
    assert "Where the time goes" in (folder / "tiny.md").read_text()


def test_one_alone_is_told_by_stage(folder: Path) -> None:
    """A request alone is timed for each contestant, and of ours each stage, which together are no longer than it."""
    contestants = json.loads((folder / "tiny.json").read_text())["contestants"]
    assert all(found["loads"]["alone"]["answered"] == 2 for found in contestants.values())
    alone = contestants["ours"]["loads"]["alone"]
    stages = alone["stage_seconds"]
    assert all(stages[stage] > 0 for stage in ("text", "step", "decode", "encode"))
    assert sum(stages.values()) < alone["requests"] * alone["mean_seconds"]["value"] * 1.05
    assert "One 128² generation alone" in (folder / "tiny.md").read_text()


def test_plot(folder: Path) -> None:
    """The numbers become a picture."""
    plot.latency(json.loads((folder / "tiny.json").read_text()), folder / "latency.png")
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_gpu_bench_runs_where_there_is_none(gpu: tuple[Path, Future[str]]) -> None:
    """`bench-gpu` runs to its end on a CPU, with a reduced geometry, and with our small packages stood in for."""
    folder, told = gpu
    assert "measures nothing" in told.result()
    found = json.loads((folder / "gpu.json").read_text())
    assert found["plan"]["model"].startswith("geometry:")
    for contestant in found["contestants"].values():
        for of in contestant["loads"].values():
            assert of["answered"] == of["requests"]


@pytest.mark.parametrize(("option", "listed"), [("--contestants", "ours,litserve"), ("--loads", "30,31")])
def test_a_name_that_is_unknown_is_refused_before_anything_is_measured(option: str, listed: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "tiny", option, listed]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    wrong = listed.split(",")[1]
    assert f"argument {option}: '{wrong}': there are " in done.stderr
