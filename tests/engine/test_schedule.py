"""Noise levels: their ends, their order, and what the policies change; against the stock pipeline: test_parity.py."""

from itertools import pairwise

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from kleinserve.engine import schedule
from kleinserve.engine.checkpoint import MINI
from kleinserve.engine.geometry import KLEIN_4B


def stock(directory: object) -> FlowMatchEulerDiscreteScheduler:
    made: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
        directory, subfolder="scheduler"
    )
    return made


@pytest.mark.parametrize("directory", [MINI, KLEIN_4B], ids=["mini", "klein-4b"])
@pytest.mark.parametrize("policy", ["official", "fixed", "clamp"])
@pytest.mark.parametrize("steps", [1, 2, 4, 50])
@pytest.mark.parametrize("tokens", [16, 4096, 16_384])
def test_noise_falls_from_1_to_0(directory: object, policy: str, steps: int, tokens: int) -> None:
    """One level more than steps, each below the one before."""
    levels = schedule.sigmas(stock(directory), tokens, steps, policy)
    assert (len(levels), levels[0], levels[-1]) == (steps + 1, 1.0, 0.0)
    assert all(high > low for high, low in pairwise(levels))


def test_a_schedule_is_made_anew_for_each_request() -> None:
    """Other requests between leave it as it was: the checkpoint's own scheduler is never changed."""
    scheduler = stock(MINI)
    before = schedule.sigmas(scheduler, 16, 4, "official")
    schedule.sigmas(scheduler, 4096, 50, "official")
    assert schedule.sigmas(scheduler, 16, 4, "official") == before
    assert before != schedule.sigmas(scheduler, 4096, 4, "official")


def test_the_policies_differ_where_they_say() -> None:
    """Clamp is official up to 4300 tokens, where that formula drops, and stays from there; fixed never moves."""
    for tokens in (16, 1024, 4300):
        assert schedule.mu(tokens, 4, "clamp") == schedule.mu(tokens, 4, "official")
    assert schedule.mu(4301, 4, "official") < schedule.mu(4300, 4, "official")
    assert schedule.mu(16_384, 4, "clamp") == schedule.mu(4300, 4, "official")
    assert schedule.mu(16, 4, "fixed") == schedule.mu(16_384, 50, "fixed") == schedule.MU_FIXED
    assert schedule.mu(4096, 50, "official") == pytest.approx(schedule.MU_FIXED, abs=0.01)
