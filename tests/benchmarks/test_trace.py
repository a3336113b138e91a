"""What arrives when."""

from collections import Counter
from itertools import pairwise
from statistics import mean

from benchmarks import trace

EDGES = (64, 128, 256)


def test_same_seed_same_trace() -> None:
    """A seed decides times, sizes, prompts, noise and references; another seed decides otherwise."""
    assert trace.poisson(5.0, 40, EDGES, 1) == trace.poisson(5.0, 40, EDGES, 1)
    assert trace.poisson(5.0, 40, EDGES, 1) != trace.poisson(5.0, 40, EDGES, 2)


def test_mix() -> None:
    """Of every trace 60, 30 and 10 % are of the three sizes, a fifth are edits, and every reference is another."""
    arrivals = trace.burst(100, EDGES, 3)
    assert Counter(a.edge for a in arrivals) == {64: 60, 128: 30, 256: 10}
    references = [a.reference for a in arrivals if a.is_edit]
    assert len(references) == len(set(references)) == 20


def test_prompts_repeat_a_little() -> None:
    """Most prompts differ and some repeat."""
    prompts = [a.prompt for a in trace.burst(300, EDGES, 4) if not a.is_edit]
    assert 0.7 < len(set(prompts)) / len(prompts) < 0.95


def test_rate() -> None:
    """Gaps have the mean that the rate says, and vary as an exponential does."""
    times = [a.at_seconds for a in trace.poisson(8.0, 2000, (64, 64, 64), 5)]
    gaps = [b - a for a, b in pairwise(times)]
    assert 0.95 / 8 < mean(gaps) < 1.05 / 8
    assert 0.3 < mean(gap > 1 / 8 for gap in gaps) < 0.45  # e^-1 = 0.37


def test_timeouts() -> None:
    """A deadline is three times what a request of that size and kind takes alone."""
    lone = {(edge, is_edit): edge / 1000 + is_edit for edge in EDGES for is_edit in (False, True)}
    for arrival in trace.with_timeouts(trace.burst(20, EDGES, 6), lone, 3.0):
        assert arrival.timeout_seconds == 3 * lone[arrival.edge, arrival.is_edit]
