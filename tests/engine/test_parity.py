"""The packed engine against the stock pipeline on the same checkpoint (engine/engine.py)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from kleinserve.core import Operation, Reference, Request, Size, Variant
from kleinserve.engine import checkpoint
from kleinserve.engine.alpha import Picture
from numpy.typing import NDArray
from PIL import Image

from tests.engine.checkpoints import flux2, klein
from tests.engine.drawing import ask, draw, loaded, reference

TOLERANCE = 1 / 255


def image(reference: Reference) -> Image.Image:
    mode = "RGBA" if reference.pixels.channels == 4 else "RGB"
    return Image.frombytes(mode, (reference.pixels.size.width, reference.pixels.size.height), reference.pixels.data)


def unit(picture: NDArray[Any]) -> Picture:
    return picture.astype(np.float32) / 255


class Model:
    """One checkpoint, loaded by us and by the stock pipeline."""

    def __init__(self, directory: Path, *, is_compiled: bool = False):
        self.layout = checkpoint.find(str(directory))
        self.engine = loaded(directory, compile="on" if is_compiled else "off")
        self.engine.warm()
        self.pipeline = DiffusionPipeline.from_pretrained(directory)
        self.pipeline.set_progress_bar_config(disable=True)
        # The stock processor would drop the alpha that a 4-channel VAE needs.
        self.pipeline.image_processor.register_to_config(do_convert_rgb=False)
        facts = self.engine.facts
        self.channels = 4 if facts.has_native_alpha else 3
        self.scales = (2.5, 4.0) if facts.variant is Variant.GUIDANCE_EMBEDDED else (facts.default_guidance_scale,)

    def requests(self) -> list[Request]:
        """Sixteen of mixed sizes, steps, references and guidance."""
        sizes = [(64, 64), (96, 64), (128, 128), (256, 64), (64, 128), (256, 256)]
        prompts = [
            "a red circle",
            "a blue star on a green background",
            "make it yellow",
            "two of them side by side, " * 16,
        ]
        made = []
        for i in range(16):
            references = tuple(
                reference(64 + 16 * (i % 3), 64 + 32 * (k % 2), i + k, self.channels) for k in range(i % 5)
            )
            operation = Operation.EDIT if references else Operation.GENERATE
            size, steps, scale = Size(*sizes[i % 6]), 1 + i % 8, self.scales[i % len(self.scales)]
            made.append(ask(f"{i}", operation, prompts[i % 4], references, size, i, steps, scale))
        return made

    def stock(self, request: Request) -> Picture:
        """Its picture, on white where the model has alpha: none of these requests is a cut-out."""
        made: Picture = self.pipeline(
            prompt=request.prompt,
            image=[image(r) for r in request.references] or None,
            height=request.size.height,
            width=request.size.width,
            num_inference_steps=request.options.steps,
            guidance_scale=request.options.guidance_scale,
            generator=torch.Generator().manual_seed(request.options.seed),
            output_type="np",
            text_encoder_out_layers=self.layout.text_layers,
            max_sequence_length=self.engine.facts.prompt_tokens_max,
        ).images[0]
        return made if made.shape[-1] == 3 else made[..., :3] * made[..., 3:] + (1 - made[..., 3:])


LAYOUTS = {
    "mini": lambda directory: checkpoint.MINI,
    "distilled": klein,
    "base": lambda directory: klein(directory, is_distilled=False),
    "native alpha": lambda directory: klein(directory, channels=4),
    "flux2": flux2,
}


@pytest.fixture(scope="module", params=[*LAYOUTS, "mini, compiled"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Each layout, and mini with its blocks compiled: after the warm-up anything that asks to compile fails."""
    layout, _, compiled = request.param.partition(", ")
    made = Model(LAYOUTS[layout](tmp_path_factory.mktemp("checkpoint")), is_compiled=bool(compiled))
    with torch.compiler.set_stance("fail_on_recompile" if compiled else "default"):
        yield made
    torch.compiler.set_stance("default")


def test_alone_equals_stock(model: Model) -> None:
    """Generations and a two-reference edit alone are what the stock pipeline makes of the same seed."""
    for request in [model.requests()[i] for i in (0, 2, 7)]:
        assert np.abs(unit(draw(model.engine, request)[0]) - model.stock(request)).max() <= TOLERANCE


def test_together_equals_stock(model: Model) -> None:
    """Sixteen mixed requests stepped together are, each, what the stock pipeline makes of it alone."""
    requests = model.requests()
    for request, made in zip(requests, draw(model.engine, *requests), strict=True):
        assert np.abs(unit(made) - model.stock(request)).max() <= 2 * TOLERANCE, request


def test_inputs_matter(model: Model) -> None:
    """Another prompt, reference, order of references or guidance changes the picture: parity is not blind."""
    one, two = reference(64, 64, 1, model.channels), reference(96, 64, 2, model.channels)

    def made(prompt: str, *references: Reference, scale: float = model.scales[0]) -> Picture:
        return unit(draw(model.engine, ask("x", Operation.EDIT, prompt, references, Size(64, 64), 0, 4, scale))[0])

    base = made("a red circle", one, two)
    others = [made("a blue star", one, two), made("a red circle", one, one), made("a red circle", two, one)]
    if model.engine.facts.variant is not Variant.DISTILLED:
        others.append(made("a red circle", one, two, scale=model.scales[0] + 1.5))
    for other in others:
        assert np.abs(other - base).max() > 4 * TOLERANCE
