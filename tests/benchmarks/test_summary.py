"""Outcomes to numbers."""

import pytest

from benchmarks import report, summary
from benchmarks.load import OK, REFUSED, Outcome
from benchmarks.plan import BURST, DEADLINES, Plan

PLAN = Plan("x", edges=(64, 128), loads=("80", DEADLINES))


def row(load: str, repetition: int, seconds: list[float], edge: int = 64, code: str = OK) -> summary.Row:
    found = [[float(i), edge, False, code, s, s / 2, 0.0] for i, s in enumerate(seconds)]
    facts = {"memory_bytes": 1, "accelerator_bytes": 0, "stages": {}}
    return {"contestant": "ours", "load": load, "repetition": repetition, "outcomes": found, **facts}


@pytest.mark.parametrize(("samples", "tail"), [(150, "p99"), (149, "p95")])
def test_p99_needs_samples(samples: int, tail: str) -> None:
    """p99 is told of a class with 300 samples; with fewer it is p95, over all repetitions together."""
    rows = [row("80", i, [0.1] * samples) for i in range(2)]
    classes = summary.summarise(rows, PLAN)["contestants"]["ours"]["loads"]["80"]["classes"]
    assert set(classes["64"]) == {"samples", "p50", tail}


def test_spread() -> None:
    """A number is of all repetitions together, its spread the least and the most of single ones."""
    rows = [row("80", 0, [0.1, 0.1]), row("80", 1, [0.3, 0.3])]
    found = summary.summarise(rows, PLAN)["contestants"]["ours"]["loads"]["80"]["mean_seconds"]
    assert found == {"value": 0.2, "low": 0.1, "high": 0.3}


def test_pairs() -> None:
    """Ours over a peer is the median of the repetitions' ratios; what one of the two has not done is no pair."""
    plan = Plan("x", edges=(64, 128), loads=("80", BURST), repetitions=3)
    rows = [row(load, n, [n + 1.0]) for load in plan.loads for n in range(3)]
    peers = [row(load, n, [2.0]) | {"contestant": "lock"} for load in plan.loads for n in range(2)]
    found = summary.summarise([*rows, *peers], plan)["pairs"]
    ratios = {"value": 0.75, "low": 0.5, "high": 1.0}
    assert found == {"lock": {"80": {"64": ratios, "128": None}, BURST: {"value": 1.5, "low": 1.0, "high": 2.0}}}


def test_deadlines() -> None:
    """Refused requests are not counted as admitted; those that passed their deadline are."""
    mixed = row(DEADLINES, 0, [1.0, 1.0, 1.0, 1.0])
    for outcome, code in zip(mixed["outcomes"], (OK, OK, "DEADLINE_EXCEEDED", REFUSED), strict=True):
        outcome[3] = code
    found = summary.summarise([mixed], PLAN)["contestants"]["ours"]["deadlines"]
    assert found["met_of_admitted"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["admitted_of_offered"] == 0.75
    assert found["goodput_per_second"]["value"] == 0.5


def test_per_second() -> None:
    """Throughput counts whole images from the first arrival to the last answer."""
    assert summary.per_second(row("80", 0, [1.0, 1.0, 2.0])) == 3 / 4


def test_outcome_survives_the_file() -> None:
    """A row's outcomes are the ones that were written."""
    assert summary.outcomes(row("80", 0, [1.0])) == [Outcome(0.0, 64, False, OK, 1.0, 0.5, 0.0)]


@pytest.mark.parametrize("where", [[], [0.37, 0.003]], ids=["an earlier run's", "packed.py's"])
def test_what_the_engine_alone_took_is_told(where: list[float]) -> None:
    """The packed ratios are a table; the server's overhead, whose values are others, is told below it."""
    found = summary.summarise([row("80", 0, [0.1])], PLAN)
    text = report.markdown(
        found | {"engine_alone": {"8 mixed": [0.5, 0.25, 2.0], report.OVERHEAD: [0.3, 0.32, 0.02, *where]}}
    )
    assert "| 8 mixed | 500 | 250 | 2.00 |" in text
    assert "bare engine loop 300 ms, through the server 320 ms, overhead 20.0 ms." in text
    assert ("370 ms on average" in text) == bool(where)
