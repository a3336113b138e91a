"""What the engine's tests ask and how they draw it: all together, step by step, as a scheduler would."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from kleinserve.config import load
from kleinserve.core import Operation, Options, Pixels, Reference, Request, Size
from kleinserve.engine import checkpoint
from kleinserve.engine.engine import Engine
from kleinserve.engine.render import Render
from numpy.typing import NDArray
from PIL import Image


def loaded(model: object = "mini", **settings: Any) -> Engine:
    """An engine of `model` with the settings over one thread on the CPU."""
    return Engine(checkpoint.find(str(model)), load({"device": "cpu", "threads": 1, "compile": "off"} | settings))


def ask(
    request_id: str,
    operation: Operation,
    prompt: str,
    references: tuple[Reference, ...],
    size: Size,
    seed: int,
    steps: int,
    guidance_scale: float,
    **options: Any,
) -> Request:
    """A request, its options by position where most tests give them."""
    return Request(request_id, operation, prompt, references, size, Options(seed, steps, guidance_scale, **options))


def reference(width: int, height: int, seed: int, channels: int) -> Reference:
    """A reference of smooth random colours and, where it has any, smooth random alpha."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, channels), dtype=np.uint8)
    bands = [
        Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC) for band in np.moveaxis(coarse, 2, 0)
    ]
    array = np.dstack([np.asarray(band) for band in bands])
    return Reference(Pixels(Size(width, height), channels, array.tobytes()), f"{seed}/{width}x{height}".encode())


def finish(pieces: Iterable[None]) -> int:
    """Do all of the pieces; returns how often others could have gone between."""
    return sum(1 for _ in pieces)


def begin(engine: Engine, requests: Sequence[Request]) -> list[Render]:
    renders = [engine.render(request) for request in requests]
    finish(engine.text(renders))
    for render in renders:
        finish(engine.begin(render))
    return renders


def denoise(engine: Engine, renders: Sequence[Render]) -> None:
    while live := [render for render in renders if not render.is_denoised]:
        engine.step(live)


def decode(engine: Engine, renders: Sequence[Render]) -> list[NDArray[Any]]:
    """Their pictures, those of one size in one call."""
    for size in {render.request.size for render in renders}:
        finish(engine.decode([render for render in renders if render.request.size == size]))
    return [render.picture for render in renders if render.picture is not None]


def draw(engine: Engine, *requests: Request) -> list[NDArray[Any]]:
    """The pictures of all requests, of first passes too, as they leave the device."""
    renders = begin(engine, requests)
    denoise(engine, renders)
    return decode(engine, renders)


def draw_whole(engine: Engine, *requests: Request) -> list[bytes]:
    """The final pixels of all requests, each alone, through every pass."""
    made = []
    for request in requests:
        [render] = begin(engine, [request])
        denoise(engine, [render])
        decode(engine, [render])
        if render.needs_second:
            finish(engine.begin_second(render))
            denoise(engine, [render])
            decode(engine, [render])
        made.append(engine.resolve(render)[0].data)
    return made
