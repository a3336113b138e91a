"""The packed engine against the stock pipeline on the same checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from kleinserve.config import Config
from kleinserve.core import Operation, Pixels, Reference, Request, Size, Variant
from kleinserve.engine import checkpoint
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine
from PIL import Image

from tests.engine.checkpoints import flux2, klein

TOLERANCE = 1 / 255


def reference(width: int, height: int, seed: int, channels: int) -> Reference:
    """A reference of smooth random colours and, where it has any, smooth random alpha."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, channels), dtype=np.uint8)
    bands = [
        Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC) for band in np.moveaxis(coarse, 2, 0)
    ]
    array = np.dstack([np.asarray(band) for band in bands])
    return Reference(Pixels(Size(width, height), channels, array.tobytes()), f"{seed}/{width}x{height}".encode())


def image(reference: Reference) -> Image.Image:
    mode = "RGBA" if reference.pixels.channels == 4 else "RGB"
    return Image.frombytes(mode, (reference.pixels.size.width, reference.pixels.size.height), reference.pixels.data)


def draw(engine: Engine, *requests: Request) -> list[Picture]:
    """All requests together, step by step, as the scheduler does it."""
    drawings = [engine.drawing(request) for request in requests]
    engine.begin(drawings)
    live = drawings
    while live:
        engine.step(live)
        live = [drawing for drawing in live if not drawing.is_denoised]
    return engine.decode(drawings)


class Model:
    """One checkpoint, loaded by us and by the stock pipeline."""

    def __init__(self, directory: Path, *, is_compiled: bool = False):
        self.layout = checkpoint.find(str(directory))
        self.engine = Engine(self.layout, Config(threads=1, compile="on" if is_compiled else "off"))
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
            made.append(Request(f"{i}", operation, prompts[i % 4], references, size, i, steps, scale))
        return made

    def stock(self, request: Request) -> Picture:
        made: Picture = self.pipeline(
            prompt=request.prompt,
            image=[image(r) for r in request.references] or None,
            height=request.size.height,
            width=request.size.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
            text_encoder_out_layers=self.layout.text_layers,
            max_sequence_length=self.engine.facts.prompt_tokens_max,
        ).images[0]
        return made


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
        assert np.abs(draw(model.engine, request)[0] - model.stock(request)).max() <= TOLERANCE


def test_together_equals_stock(model: Model) -> None:
    """Sixteen mixed requests stepped together are, each, what the stock pipeline makes of it alone."""
    requests = model.requests()
    for request, made in zip(requests, draw(model.engine, *requests), strict=True):
        assert np.abs(made - model.stock(request)).max() <= 2 * TOLERANCE, request


def test_inputs_matter(model: Model) -> None:
    """Another prompt, reference, order of references or guidance changes the picture: parity is not blind."""
    one, two = reference(64, 64, 1, model.channels), reference(96, 64, 2, model.channels)

    def made(prompt: str, *references: Reference, scale: float = model.scales[0]) -> Picture:
        return draw(model.engine, Request("x", Operation.EDIT, prompt, references, Size(64, 64), 0, 4, scale))[0]

    base = made("a red circle", one, two)
    others = [made("a blue star", one, two), made("a red circle", one, one), made("a red circle", two, one)]
    if model.engine.facts.variant is not Variant.DISTILLED:
        others.append(made("a red circle", one, two, scale=model.scales[0] + 1.5))
    for other in others:
        assert np.abs(other - base).max() > 4 * TOLERANCE
