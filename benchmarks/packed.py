"""Packed stepping against one request after another, and the server's overhead; mini, this machine, one run.

    .venv/bin/python -m benchmarks.packed [FILE]

Prints medians over the repetitions, and writes them to FILE as JSON, in seconds. Denoising alone for the ratios; one
256² request end to end for the overhead.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from kleinclient import Client
from kleinserve.codec import image
from kleinserve.codec.provenance import Provenance
from kleinserve.config import Config
from kleinserve.core import Request, Size
from kleinserve.engine import checkpoint
from kleinserve.engine.engine import Engine
from kleinserve.engine.render import Render

from benchmarks.bare import begun, decoded, denoise, request
from benchmarks.serving import ours

REPETITIONS = 9
PAIRS = 60  # of one request alone and through the server: single ones differ by tens of milliseconds
MIXED = [(64, 64), (128, 128), (256, 256), (192, 96), (64, 128), (128, 64), (256, 128), (96, 96)]


def requests(sizes: list[tuple[int, int]]) -> list[Request]:
    return [request("a red circle", Size(*size), seed) for seed, size in enumerate(sizes)]


def together(engine: Engine, renders: list[Render]) -> float:
    started = time.perf_counter()
    denoise(engine, renders)
    return time.perf_counter() - started


def alone(engine: Engine, renders: list[Render]) -> float:
    return sum(together(engine, [render]) for render in renders)


def median(measure: Callable[[], float]) -> float:
    measure()
    return statistics.median(measure() for _ in range(REPETITIONS))


def ratio(engine: Engine, sizes: list[tuple[int, int]]) -> tuple[float, float, float]:
    """Seconds one after another, seconds packed, and the median of the paired ratios."""
    pairs = []
    for _ in range(REPETITIONS + 1):
        asked = requests(sizes)
        pairs.append((alone(engine, begun(engine, asked)), together(engine, begun(engine, asked))))
    pairs = pairs[1:]
    one, packed = (statistics.median(column) for column in zip(*pairs, strict=True))
    return one, packed, statistics.median(a / b for a, b in pairs)


def bare(engine: Engine) -> float:
    """Seconds of one 256² request through the engine alone: prompt cached, steps, previews, decode, PNG."""
    asked = requests([(256, 256)])
    started = time.perf_counter()
    render = begun(engine, asked)[0]
    while not render.is_denoised:
        engine.step([render])
        for shown in engine.previews([render]):
            shown()
    decoded(engine, [render])
    pixels, alpha_method = engine.resolve(render)
    image.encode(pixels, asked[0].options.output, alpha_method, Provenance("mini", 0, 4, "0", ""))
    return time.perf_counter() - started


def served(client: Client) -> float:
    started = time.perf_counter()
    client.generate("a red circle", size=(256, 256), seed=0, steps=4).result()
    return time.perf_counter() - started


def answered(client: Client) -> float:
    """Seconds of a call that draws nothing, to a server that has idled for a moment."""
    time.sleep(0.02)
    started = time.perf_counter()
    client.capabilities()
    return time.perf_counter() - started


def main() -> None:
    print(f"{platform.machine()}, torch {torch.__version__}, mini, float32")
    found: dict[str, list[float]] = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        engine = Engine(checkpoint.find("mini"), Config(threads=threads))
        for name, sizes in (("8 x 128²", [(128, 128)] * 8), ("8 x 64²", [(64, 64)] * 8), ("8 mixed", MIXED)):
            said = f"{name}, {threads} torch threads"
            one, packed, times = found[said] = [round(x, 5) for x in ratio(engine, sizes)]
            print(f"{said}: one after another {one * 1e3:.0f} ms, packed {packed * 1e3:.0f} ms, {times:.2f} times")
    alone_, through, over, stages, nothing = found["one 256²"] = [
        round(x, 5) for x in overhead(Engine(checkpoint.find("mini"), Config()))
    ]
    print(
        f"one 256² request: bare engine {alone_ * 1e3:.0f} ms, through the server {through * 1e3:.0f} ms, "
        f"{stages * 1e3:.0f} of them in its stages, overhead {over * 1e3:.1f} ms; "
        f"a call that draws nothing {nothing * 1e3:.1f} ms"
    )
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def overhead(engine: Engine) -> tuple[float, float, float, float, float]:
    """Seconds of one 256² request: through the engine alone, through the server, and the median of the differences.

    Then what of it the server's stages take on average, and the seconds of a call that draws nothing.
    """
    with TemporaryDirectory() as folder, ours(Path(folder) / "server.log") as server, Client(server.target) as client:
        served(client)
        before = sum(server.stage_seconds().values())
        pairs = [(bare(engine), served(client)) for _ in range(PAIRS)]
        stages = (sum(server.stage_seconds().values()) - before) / PAIRS
        nothing = statistics.median(answered(client) for _ in range(PAIRS))
    alone_, through = (statistics.median(column) for column in zip(*pairs, strict=True))
    return alone_, through, statistics.median(b - a for a, b in pairs), stages, nothing


if __name__ == "__main__":
    main()
