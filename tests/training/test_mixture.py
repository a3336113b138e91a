"""Prompts and scenes agree, and the tokenizer reads every prompt whole."""

import re
from random import Random

import pytest

from training import tokenizer as words
from training.mixture import example, is_held_out
from training.requests import KINDS, TRANSPARENT_PHRASE
from training.scene import COLOURS, PALETTE, render
from training.score import check, held_out

COUNTS = {"generate": 0, "pair": 0, "beside": 2, "transfer": 2, "grid": 4}


@pytest.fixture(scope="module")
def tokenizer() -> words.Qwen2TokenizerFast:
    return words.build()


@pytest.mark.parametrize("kind", KINDS)
def test_the_scorer_finds_in_a_rendered_target_all_that_was_asked(kind: str) -> None:
    """On the renderer's own answer every check of every kind holds, so a miss is the model's."""
    for one in held_out(kind, COUNTS.get(kind, 1), 12, (128, 128)):
        assert check(one, render([one.target])[0]) == dict.fromkeys(
            ("background", "colour", "outline", "place", "size"), True
        ), one.prompt


def test_a_description_names_what_it_draws() -> None:
    """A prompt's colours are those of its thing and its background, no others."""
    for seed in range(300):
        one = example(Random(seed), 0, (64, 64), "generate")
        named = {c for c in COLOURS if re.search(rf"\b{c}\b", one.prompt.lower().replace("grey", "gray"))}
        thing = next(c for c in COLOURS if PALETTE[c] == one.target.things[0].rgb)
        assert thing in named
        if TRANSPARENT_PHRASE in one.prompt.lower():
            assert one.target.background is None


def test_held_out_prompts_are_never_drawn_for_training() -> None:
    """The training mixture and the scored prompts have none in common."""
    random = Random(0)
    assert not any(is_held_out(example(random, 0, (64, 64))) for _ in range(500))
    assert all(is_held_out(one) for one in held_out("generate", 0, 20, (64, 64)))


def test_no_prompt_is_cut(tokenizer: words.Qwen2TokenizerFast) -> None:
    """Every prompt of the mixture fits the token limit with its end mark."""
    ids = words.encode(tokenizer, words.captions(3000, seed=5))["input_ids"]
    assert ((ids == tokenizer.convert_tokens_to_ids(words.END)).sum(1) == 1).all()


def test_spelling_does_not_matter_and_nothing_is_refused(tokenizer: words.Qwen2TokenizerFast) -> None:
    """Case, full stops and spaces give the same tokens; unknown letters give bytes, never an unknown token."""
    plain, shouted, foreign = words.encode(
        tokenizer, ["a red circle, on blue", " A RED  circle. On Blue!", "ein Käse 猫"]
    )["input_ids"]
    assert plain.tolist() == shouted.tolist()
    assert "猫" in tokenizer.decode(foreign)
