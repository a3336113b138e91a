"""The real server with an engine that fails on purpose: `python -m tests.e2e.faults serve …`, options as kleinserve's.

A request's prompt says what happens to it, FAULTS_* variables say what happens to all; everything else is real.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from kleinserve import __main__
from kleinserve.engine import alpha, engine
from kleinserve.engine.drawing import Drawing

FAILS = "fail in a step"
DIES = "lose the accelerator"
UNFINISHED = "decode to nonsense"
UNTILED = "decode in tiles only"
STILL, MOVED = "a disc that keeps still", "a disc that moves"
SECRET = "/insides/of/the/server"
SECOND_STEP = 1  # steps done before it: a request fails after its first progress

IMAGE_TOKENS_MAX = int(os.environ.get("FAULTS_IMAGE_TOKENS_MAX", "1000000"))  # of one step, above which memory ends
WARM_UP_FILE = os.environ.get("FAULTS_WARM_UP_FILE")  # the warm-up lasts until it exists
ENDS_FILE = os.environ.get("FAULTS_ENDS_FILE")  # a line per stage that ended: monotonic seconds, stage, id, steps done


class FaultyEngine(engine.Engine):
    """An engine whose failures are the prompts'; what it does not spoil it does as the real one."""

    def begin(self, drawings: Sequence[Drawing]) -> None:
        while WARM_UP_FILE and not Path(WARM_UP_FILE).exists():
            time.sleep(0.01)
        super().begin(drawings)

    def step(self, drawings: Sequence[Drawing]) -> None:
        for drawing in drawings:
            prompt, is_second = drawing.request.prompt, drawing.steps_done == SECOND_STEP
            if is_second and prompt == FAILS:
                raise RuntimeError(f"{SECRET} failed")
            if is_second and prompt == DIES:
                raise torch.AcceleratorError(f"{SECRET} is lost")
        if (tokens := sum(drawing.request.size.tokens for drawing in drawings)) > IMAGE_TOKENS_MAX:
            raise torch.OutOfMemoryError(f"{SECRET} has no room for {tokens} tokens")
        super().step(drawings)
        _ended("step", drawings)

    def decode(self, drawings: Sequence[Drawing], *, tiled: bool = False) -> list[alpha.Picture]:
        if not tiled and any(drawing.request.prompt == UNTILED for drawing in drawings):
            raise torch.OutOfMemoryError(f"{SECRET} has no room for the decoder")
        pictures = super().decode(drawings, tiled=tiled)
        _ended("decode", drawings)
        return [_spoiled(drawing, picture) for drawing, picture in zip(drawings, pictures, strict=True)]


def _ended(stage: str, drawings: Sequence[Drawing]) -> None:
    if ENDS_FILE:
        now = time.monotonic()
        with Path(ENDS_FILE).open("a") as file:
            for drawing in drawings:
                file.write(f"{now} {stage} {drawing.request.request_id} {drawing.steps_done}\n")


def _spoiled(drawing: Drawing, picture: alpha.Picture) -> alpha.Picture:
    """A decoded picture, or what the prompt wants instead of it: a disc on white, in the second pass on black."""
    if drawing.request.prompt == UNFINISHED:
        return picture[..., :2]
    if drawing.request.prompt not in (STILL, MOVED):
        return picture
    is_second = drawing.on_white is not None
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]] / picture.shape[0] - 0.5
    shift = 0.3 if is_second and drawing.request.prompt == MOVED else 0.0
    inside = (np.hypot(rows, columns - shift) < 0.25)[..., None]
    ground = 0.0 if is_second else 1.0
    return np.where(inside, np.float32([0.8, 0.2, 0.1]), np.float32(ground)).astype(np.float32)


if __name__ == "__main__":
    engine.Engine = FaultyEngine
    __main__.main()
