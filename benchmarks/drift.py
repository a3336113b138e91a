"""How far bfloat16 and fp8 move mini's pictures: levels of 255 and PSNR, over 24 generations and 24 edits of 128².

    .venv/bin/python -m benchmarks.drift

On a CPU torchao's fp8 arithmetic is the same and slow, so its check of the hardware is passed by; nothing is timed.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from kleinserve.config import Config
from kleinserve.core import Reference, Request, Size
from kleinserve.engine import alpha, checkpoint, quantized
from kleinserve.engine.engine import Engine
from numpy.typing import NDArray

from benchmarks import bare

COLOURS, SHAPES = ("red", "blue", "green", "yellow", "black", "pink"), ("circle", "star", "heart", "ring")
SIZE = Size(128, 128)


def main() -> None:
    exact = Engine(checkpoint.find("mini"), Config(dtype="float32", compile="off"))
    prompts = [f"a {colour} {shape} on a white background" for colour, shape in product(COLOURS, SHAPES)]
    generations = [bare.request(prompt, SIZE, i) for i, prompt in enumerate(prompts)]
    references = [Reference(_opaque(picture), str(i).encode()) for i, picture in enumerate(made(exact, generations))]
    edits = [bare.request("make it orange", SIZE, i, (reference,)) for i, reference in enumerate(references)]
    asked = generations + edits
    rough = Engine(checkpoint.find("mini"), Config(dtype="bfloat16", compile="off"))
    in_float32, in_bfloat16 = made(exact, asked), made(rough, asked)
    with patch("torchao.quantization.quant_api._check_hardware_support"):
        quantized.quantize(rough._denoiser.transformer)
    print(f"{exact.facts.device}, torch {torch.__version__}: mean, 99th percentile, largest difference, in levels")
    for name, one, other in (
        ("bfloat16 and float32", in_bfloat16, in_float32),
        ("fp8 and bfloat16", made(rough, asked), in_bfloat16),
    ):
        apart = np.abs(np.stack(one).astype(int) - np.stack(other))
        psnr = 20 * np.log10(255 / np.sqrt(np.maximum(1e-9, (apart**2).mean(axis=(1, 2, 3)))))
        said = f"PSNR of a picture: median {np.median(psnr):.1f} dB, least {psnr.min():.1f} dB"
        print(f"{name}: {apart.mean():.2f}, {np.percentile(apart, 99):.1f}, {apart.max()}; {said}")


def made(engine: Engine, asked: Sequence[Request]) -> list[NDArray[Any]]:
    renders = bare.begun(engine, asked)
    bare.denoise(engine, renders)
    return bare.decoded(engine, renders)


def _opaque(picture: NDArray[Any]) -> Any:
    """As the model sees a reference: mini's has an alpha."""
    return alpha.pixels(np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]))


if __name__ == "__main__":
    main()
