"""The real server with an engine that fails on purpose: `python -m tests.e2e.faults serve …`, options as kleinserve's.

A request's prompt says what happens to it, FAULTS_* variables say what happens to all; everything else is real.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kleinserve import __main__
from kleinserve.engine import engine
from kleinserve.engine.render import Render
from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory
from numpy.typing import NDArray

FAILS = "fail in a step"
DIES = "lose the accelerator"
UNFINISHED = "decode to nonsense"
UNTILED = "decode in tiles only"
BLANK = "a blank picture"  # there at once, whatever its size
STILL, MOVED = "a disc that keeps still", "a disc that moves"
SECRET = "/insides/of/the/server"
SECOND_STEP = 1  # steps done before it: a request fails after its first progress

IMAGE_TOKENS_MAX = int(os.environ.get("FAULTS_IMAGE_TOKENS_MAX", "1000000"))  # of one step, above which memory ends
WARM_UP_FILE = os.environ.get("FAULTS_WARM_UP_FILE")  # the warm-up lasts until it exists
ENDS_FILE = os.environ.get("FAULTS_ENDS_FILE")  # a line per stage that ended: monotonic seconds, stage, id, steps done


class FaultyEngine(engine.Engine):
    """An engine whose failures are the prompts'; what it does not spoil it does as the real one."""

    def warm(self) -> None:
        while WARM_UP_FILE and not Path(WARM_UP_FILE).exists():
            time.sleep(0.01)
        super().warm()

    def step(self, renders: Sequence[Render]) -> None:
        for render in renders:
            prompt, is_second = render.request.prompt, render.steps_done == SECOND_STEP
            if is_second and prompt == FAILS:
                raise RuntimeError(f"{SECRET} failed")
            if is_second and prompt == DIES:
                raise AcceleratorLost(f"{SECRET} is lost")
        if (tokens := sum(render.request.size.tokens for render in renders)) > IMAGE_TOKENS_MAX:
            raise AcceleratorOutOfMemory(f"{SECRET} has no room for {tokens} tokens")
        if drawn := [render for render in renders if render.request.prompt != BLANK]:
            super().step(drawn)
        for render in renders:
            if render.request.prompt == BLANK and render.row is not None:
                render.row.step += 1
                render.steps_done += 1
        _ended("step", renders)

    def decode(self, renders: Sequence[Render], *, tiled: bool = False) -> Iterator[None]:
        if not tiled and any(render.request.prompt == UNTILED for render in renders):
            raise AcceleratorOutOfMemory(f"{SECRET} has no room for the decoder")
        if renders[0].request.prompt == BLANK:
            for render in renders:
                size = render.request.size
                render.picture, render.row = np.zeros((size.height, size.width, 3), np.uint8), None
        else:
            yield from super().decode(renders, tiled=tiled)
        _ended("decode", renders)
        for render in renders:
            render.picture = _spoiled(render, render.picture)


def _ended(stage: str, renders: Sequence[Render]) -> None:
    if ENDS_FILE:
        now = time.monotonic()
        with Path(ENDS_FILE).open("a") as file:
            for render in renders:
                file.write(f"{now} {stage} {render.request.request_id} {render.steps_done}\n")


def _spoiled(render: Render, picture: NDArray[Any]) -> NDArray[Any]:
    """A decoded picture, or what the prompt wants instead of it: a disc on white, in the second pass on black."""
    if render.request.prompt == UNFINISHED:
        return picture[..., :2]
    if render.request.prompt not in (STILL, MOVED):
        return picture
    is_second = render.on_white is not None
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] / picture.shape[0] - 0.5
    shift = 0.3 if is_second and render.request.prompt == MOVED else 0.0
    inside = (np.hypot(rows, columns - shift) < 0.25)[..., None]
    ground = 0.0 if is_second else 1.0
    return np.where(inside, np.float32([0.8, 0.2, 0.1]), np.float32(ground)).astype(np.float32)


if __name__ == "__main__":
    engine.Engine = FaultyEngine
    __main__.main()
