"""How far bfloat16 and fp8 move mini's pictures: levels of 255, over 24 generations and 24 edits of 128².

    .venv/bin/python -m benchmarks.drift

On a CPU torchao's fp8 arithmetic is the same and slow, so its check of the hardware is passed by; nothing is timed.
"""

from itertools import product
from unittest.mock import patch

import numpy as np
import torch
from kleinserve.config import Config
from kleinserve.core import Operation, Pixels, Reference, Request, Size
from kleinserve.engine import alpha, checkpoint, quantized
from kleinserve.engine.engine import Engine

COLOURS, SHAPES = ("red", "blue", "green", "yellow", "black", "pink"), ("circle", "star", "heart", "ring")
SIZE = Size(128, 128)


def main() -> None:
    exact = Engine(checkpoint.find("mini"), Config(dtype="float32", compile="off"))
    prompts = [f"a {colour} {shape} on a white background" for colour, shape in product(COLOURS, SHAPES)]
    drawn = [Request(p, Operation.GENERATE, p, (), SIZE, i, 4, 1.0) for i, p in enumerate(prompts)]
    pictures = made(exact, drawn)
    references = [Reference(_opaque(picture), str(i).encode()) for i, picture in enumerate(pictures)]
    edits = [Request("e", Operation.EDIT, "make it orange", (r,), SIZE, i, 4, 1.0) for i, r in enumerate(references)]
    asked = drawn + edits
    rough = Engine(checkpoint.find("mini"), Config(dtype="bfloat16", compile="off"))
    in_float32, in_bfloat16 = made(exact, asked), made(rough, asked)
    with patch("torchao.quantization.quant_api._check_hardware_support"):
        quantized.quantize(rough._denoiser.transformer)
    print(f"{exact.facts.device}, torch {torch.__version__}: mean, 99th percentile, largest difference, in levels")
    for name, one, other in (
        ("bfloat16 and float32", in_bfloat16, in_float32),
        ("fp8 and bfloat16", made(rough, asked), in_bfloat16),
    ):
        apart = np.abs(np.stack(one) - np.stack(other)) * 255
        print(f"{name}: {apart.mean():.2f}, {np.percentile(apart, 99):.1f}, {apart.max():.0f}")


def made(engine: Engine, asked: list[Request]) -> list[alpha.Picture]:
    drawings = [engine.drawing(request) for request in asked]
    engine.begin(drawings)
    while not drawings[0].is_denoised:
        engine.step(drawings)
    return engine.decode(drawings)


def _opaque(picture: alpha.Picture) -> Pixels:
    opaque = alpha.quantise(picture)
    return Pixels(opaque.size, 4, opaque.data)


if __name__ == "__main__":
    main()
