"""What is done in a pause changes nothing for what is paused."""

import time
from dataclasses import replace

import pytest
import torch
from kleinserve.config import Config
from kleinserve.core import Operation, Request, Size
from kleinserve.engine import checkpoint
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine

from tests.engine.test_parity import draw, reference


def edit(edge: int, seed: int) -> Request:
    """An edit whose reference no cache keeps."""
    source = replace(reference(edge, edge, seed, 4), digest=b"")
    return Request(f"{seed}", Operation.EDIT, "make it red", (source,), Size(edge, edge), seed, 1, 1.0)


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_an_interrupted_encode_and_decode_give_the_same_picture(device: str) -> None:
    """Others are drawn between their parts; every picture stays as it was, and time in a pause is not counted."""
    engine = Engine(checkpoint.find("mini"), Config(device=device, threads=1))
    large, small, paused = edit(256, 1), edit(64, 2), 0.0
    [large_alone], [small_alone] = draw(engine, large), draw(engine, small)
    drawn: list[Picture] = []

    def interrupt() -> None:
        nonlocal paused
        engine.pauses.do = None
        started = time.perf_counter()
        drawn.extend(draw(engine, small))
        paused += time.perf_counter() - started
        engine.pauses.do = interrupt

    engine.pauses.do = interrupt
    real, counted = time.perf_counter(), engine.pauses.seconds()
    [interrupted] = draw(engine, large)
    real, counted = time.perf_counter() - real, engine.pauses.seconds() - counted

    assert len(drawn) > 4  # the encode has fewer parts than that
    assert (interrupted == large_alone).all()
    assert all((picture == small_alone).all() for picture in drawn)
    assert abs(real - counted - paused) < 0.05 * real
