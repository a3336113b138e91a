"""How far a picture in the making is, by what is there of it."""

import numpy as np
import pytest
import torch
from kleinserve.core import Size
from kleinserve.engine.denoise import Row
from kleinserve.engine.render import Render
from kleinserve.engine.text import Tokens

from tests.desk.requests import REQUEST

PICTURE = np.zeros((64, 64, 3), np.uint8)


def row(step: int, steps: int = 4) -> Row:
    tokens, context = torch.zeros(16, 8), torch.zeros(3, 24)
    sigmas = tuple(np.linspace(1.0, 0.0, steps + 1))
    return Row(Size(64, 64), tokens, context[:0], (), (context,), sigmas, 1.0, step)


def render(passes: int = 1) -> Render:
    return Render(REQUEST, Tokens((1, 2), 5), passes)


@pytest.mark.parametrize("passes", [1, 2])
def test_steps_are_counted_over_all_passes(passes: int) -> None:
    """A difference cut-out takes twice the steps."""
    assert render(passes).total_steps == 4 * passes


def test_a_prompt_is_truncated_where_it_had_more_tokens() -> None:
    """The number before the cut is what is told."""
    assert (render().prompt_tokens, render().is_truncated) == (5, True)
    assert not Render(REQUEST, Tokens((1, 2), 2), 1).is_truncated


def test_a_pass_from_its_beginning_to_its_picture() -> None:
    """Not begun, begun, denoised, decoded: the row goes when the picture is there."""
    one = render()
    states = []
    for made in ((None, None), (row(0), None), (row(4), None), (None, PICTURE)):
        one.row, one.picture = made
        states.append((one.is_begun, one.is_denoised))
    assert states == [(False, False), (True, False), (True, True), (True, True)]
    assert not one.needs_second


def test_the_second_pass_follows_once() -> None:
    """It is needed until it has begun, and then has its own steps to take."""
    two = render(passes=2)
    assert two.needs_second
    two.on_white, two.picture, two.row = PICTURE, None, row(0)
    assert (two.needs_second, two.is_denoised) == (False, False)


def test_a_row_says_what_a_step_takes() -> None:
    """Text, its own tokens and its references', for each of its sequences."""
    guided = row(1)
    guided.references = torch.zeros(10, 24)
    assert (guided.tokens, guided.steps, guided.is_done) == (3 + 16 + 10, 4, False)
    guided.contexts = (torch.zeros(3, 24), torch.zeros(5, 24))
    assert guided.tokens == 29 + (5 + 16 + 10)
    assert row(4).is_done
