"""The engine without a server: requests of mini's, begun, stepped and decoded by whoever measures."""

from collections.abc import Iterable, Sequence
from typing import Any

from kleinserve.core import Operation, Options, Reference, Request, Size
from kleinserve.engine.engine import Engine
from kleinserve.engine.render import Render
from numpy.typing import NDArray

STEPS = 4


def request(prompt: str, size: Size, seed: int, references: tuple[Reference, ...] = ()) -> Request:
    operation = Operation.EDIT if references else Operation.GENERATE
    return Request(str(seed), operation, prompt, references, size, Options(seed, STEPS, 1.0))


def begun(engine: Engine, requests: Sequence[Request]) -> list[Render]:
    """Their first step can be taken."""
    renders = [engine.render(request) for request in requests]
    finish(engine.text(renders))
    for render in renders:
        finish(engine.begin(render))
    return renders


def denoise(engine: Engine, renders: Sequence[Render]) -> None:
    """All steps, together; they have as many."""
    while not renders[0].is_denoised:
        engine.step(renders)


def decoded(engine: Engine, renders: Sequence[Render]) -> list[NDArray[Any]]:
    """Pictures of one size: [H, W, 3], 8 bits."""
    finish(engine.decode(renders))
    return [render.picture for render in renders if render.picture is not None]


def finish(pieces: Iterable[None]) -> None:
    """Do all of them."""
    for _ in pieces:
        pass
