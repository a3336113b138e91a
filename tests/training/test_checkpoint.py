"""The committed checkpoint is a klein that the stock pipeline loads and that draws what is asked."""

import json

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from training.draw import draw_batch
from training.measure import background, see
from training.models import CHECKPOINT, OUT_LAYERS
from training.requests import Example
from training.scene import PALETTE, Scene, Thing, render

PROMPTS = [
    ("a red circle on a white background", "circle", "red", "white"),
    ("A LARGE BLUE SQUARE on yellow.", "square", "blue", "yellow"),
    ("a green triangle, transparent background", "triangle", "green", "transparent"),
    ("a yellow star on a black background", "star", "yellow", "black"),
    ("purple heart on the left, cyan background", "heart", "purple", "cyan"),
    ("a large orange ring with a transparent background", "ring", "orange", "transparent"),
    ("a black diamond on pink", "diamond", "black", "pink"),
    ("a white cross against a brown background", "cross", "white", "brown"),
]


@pytest.fixture(scope="module")
def pipe() -> Flux2KleinPipeline:
    stock = Flux2KleinPipeline.from_pretrained(CHECKPOINT)
    stock.set_progress_bar_config(disable=True)
    stock.image_processor.register_to_config(do_convert_rgb=False)  # else it drops a reference's alpha
    return stock


def drawn(pipe: Flux2KleinPipeline, prompt: str, side: int, image: Image.Image | None = None) -> torch.Tensor:
    """Straight-alpha RGBA [4, H, W] by the call that the model card gives."""
    pixels = pipe(
        image=image,
        prompt=prompt,
        height=side,
        width=side,
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=pipe.tokenizer.model_max_length,
        text_encoder_out_layers=OUT_LAYERS,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def test_the_directory_is_small_and_says_what_a_server_needs() -> None:
    """At most 24 MB, distilled, with a card and the phrase for transparency."""
    assert sum(f.stat().st_size for f in CHECKPOINT.rglob("*")) <= 24_000_000
    assert json.loads((CHECKPOINT / "model_index.json").read_text())["is_distilled"] is True
    phrase = json.loads((CHECKPOINT / "kleinserve.json").read_text())["transparent_phrase"]
    assert phrase in (CHECKPOINT / "README.md").read_text()


def test_eight_prompts_are_answered(pipe: Flux2KleinPipeline) -> None:
    """At 128² and 4 steps, of eight prompts at least seven show the asked background, colour and shape."""
    hits = 0
    for prompt, outline, colour, back in PROMPTS:
        picture = drawn(pipe, prompt, 128)
        seen = see(picture)
        hits += seen is not None and (seen.outline, seen.colour, background(picture)[0]) == (outline, colour, back)
    assert hits >= 7


def test_the_default_size_is_answered(pipe: Flux2KleinPipeline) -> None:
    """At 256² a prompt with a place puts the thing there."""
    seen = see(drawn(pipe, "a small red square on the right on a white background", 256))
    assert seen is not None
    assert (seen.outline, seen.colour) == ("square", "red")
    assert seen.x > 0.62


def test_an_edit_changes_what_was_asked_and_keeps_the_rest(pipe: Flux2KleinPipeline) -> None:
    """A recoloured star is still a star where it was, on its old background."""
    scene = Scene((Thing("star", PALETTE["red"], 0.4, 0.6, 0.25),), PALETTE["white"], 128, 128)
    pixels = (render([scene])[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    picture = drawn(pipe, "make it blue", 128, Image.fromarray(pixels))
    seen = see(picture)
    assert seen is not None
    assert (seen.outline, seen.colour, background(picture)[0]) == ("star", "blue", "white")
    assert abs(seen.x - 0.4) < 0.08
    assert abs(seen.y - 0.6) < 0.08


def test_the_scored_pictures_are_the_stock_pipeline_s(pipe: Flux2KleinPipeline) -> None:
    """The batched drawing that scores are made with gives the pipeline's own pixels."""
    prompt = "a red circle on the left on a yellow background"
    mine = draw_batch(pipe, [Example("generate", prompt, (), Scene((), None, 64, 64))], [7], 4)[0]
    assert (mine - drawn(pipe, prompt, 64)).abs().max() < 2e-3
