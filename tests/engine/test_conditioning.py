"""What a pass starts from, made in pieces, and nothing of it before the last one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kleinserve.core import Operation, Reference, Size
from kleinserve.engine.conditioning import Conditioning
from kleinserve.engine.denoise import noise
from kleinserve.engine.engine import Engine
from kleinserve.engine.render import Render

from tests.engine.checkpoints import klein
from tests.engine.drawing import ask, finish, loaded, reference

ONE, TWO = reference(64, 64, 1, 3), reference(96, 64, 2, 3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A base model, small and random."""
    directory: Path = tmp_path_factory.mktemp("checkpoint")
    return loaded(klein(directory, is_distilled=False))


@pytest.fixture
def conditioning(engine: Engine) -> Conditioning:
    return engine._conditioning


def render(engine: Engine, prompt: str, *references: Reference, scale: float = 4.0, **options: Any) -> Render:
    operation = Operation.EDIT if references else Operation.GENERATE
    return engine.render(ask("a", operation, prompt, references, Size(96, 64), 7, 3, scale, **options))


@torch.inference_mode()
def test_a_row_is_what_was_asked(engine: Engine, conditioning: Conditioning) -> None:
    """Size, noise of the seed, noise levels, references in their order; the prompt is encoded on the way."""
    begun = render(engine, "a star", ONE, TWO)
    finish(conditioning.begin(begun))
    row = begun.row
    assert row is not None
    assert (row.size, row.steps, row.step, row.guidance_scale) == (Size(96, 64), 3, 0, 4.0)
    assert torch.equal(row.latents, noise(Size(96, 64), engine.facts.latent_channels, 7))
    assert (row.reference_sizes, len(row.references)) == ((Size(64, 64), Size(96, 64)), 16 + 24)
    assert begun.contexts == row.contexts


@pytest.mark.parametrize(("scale", "sequences"), [(1.0, 1), (1.5, 2), (4.0, 2)])
@torch.inference_mode()
def test_guidance_above_1_has_an_empty_prompt_beside(
    engine: Engine, conditioning: Conditioning, scale: float, sequences: int
) -> None:
    """The same one for all; at 1 it would change nothing, as in the stock pipeline."""
    begun, other = (render(engine, prompt, scale=scale) for prompt in ("a star", "a moon"))
    finish(conditioning.encode_text([begun, other]))
    assert begun.contexts is not None
    assert other.contexts is not None
    assert len(begun.contexts) == sequences
    assert not torch.equal(begun.contexts[0], other.contexts[0])
    assert all(mine is theirs for mine, theirs in zip(begun.contexts[1:], other.contexts[1:], strict=True))


@torch.inference_mode()
def test_what_was_known_is_said(engine: Engine, conditioning: Conditioning) -> None:
    """Hits and misses of the prompt and of each reference, for the metrics."""
    first, again = (
        render(engine, "a star seen once", reference(64, 64, 9, 3), reference(64, 64, i, 3)) for i in (7, 8)
    )
    for each in (first, again):
        finish(conditioning.begin(each))
    assert (first.prompt_hit, first.reference_hits) == (False, [False, False])
    assert (again.prompt_hit, again.reference_hits) == (True, [True, False])


@torch.inference_mode()
def test_nothing_changes_before_the_last_piece(engine: Engine, conditioning: Conditioning) -> None:
    """Left half-way a render is as it was, and can be begun again."""
    prompt, own = "a star that is left", reference(64, 64, 5, 3)
    left = render(engine, prompt, own)
    pieces = conditioning.begin(left)
    next(pieces)
    pieces.close()
    assert (left.contexts, left.row, left.prompt_hit, left.reference_hits) == (None, None, None, [])
    finish(conditioning.encode_text([left]))
    pieces = conditioning.begin(left)
    next(pieces)
    assert (left.row, left.reference_hits) == (None, [])
    assert finish(pieces) > 0
    assert left.row is not None


@torch.inference_mode()
def test_the_second_pass_edits_the_first_one_s_picture(engine: Engine, conditioning: Conditioning) -> None:
    """Its one reference is the picture on white, whatever the request's own were; it is kept in no cache."""
    done = render(engine, "a star", ONE, TWO)
    picture = np.full((64, 96, 3), 0.5, np.float32)
    done.picture = picture
    kept = conditioning._references._cache.currsize
    pieces = conditioning.begin_second(done)
    next(pieces)
    assert (done.on_white, done.row) == (None, None)
    finish(pieces)
    assert done.row is not None
    assert (done.row.reference_sizes, len(done.row.references)) == ((Size(96, 64),), 24)
    assert done.on_white is picture
    assert done.picture is None
    assert conditioning._references._cache.currsize == kept
    assert torch.equal(done.row.latents, noise(Size(96, 64), engine.facts.latent_channels, 7))
