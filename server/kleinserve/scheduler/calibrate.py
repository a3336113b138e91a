"""Measures the server's own stages before it serves, and keeps what it found on disk. The warm-up images are these."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import structlog
from platformdirs import user_cache_path

from kleinserve import __version__
from kleinserve.codec import image
from kleinserve.codec.provenance import Provenance
from kleinserve.core import EDGE_MULTIPLE, Operation, Pixels, Reference, Request, Size
from kleinserve.engine import memory
from kleinserve.engine.drawing import resolve
from kleinserve.engine.engine import Engine
from kleinserve.scheduler.cost import STAGES, Cost, Line
from kleinserve.scheduler.job import load_of

_SECONDS_MAX = 10.0
_EDGE_MIN = 64

log = structlog.get_logger()


def calibrated(engine: Engine) -> Cost:
    """Make the warm-up image and learn what every stage costs.

    A cost found before for the same checkpoint, device and version is read back. Raises what a request would.
    """
    started = time.perf_counter()
    engine.warm()
    if engine.is_compiled:
        log.info("compiled", seconds=round(time.perf_counter() - started, 1))
    path = _path(engine)
    try:
        cost = Cost.load(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        cost = measure(engine)
        _keep(path, cost)
    else:
        _measured(engine, _sizes(engine)[0 if engine.facts.device == "cpu" else -1], 1, 1, "warm-up")
    found = {
        stage: f"{line.fixed:.3g} s + {line.per_unit:.3g} s / {STAGES[stage]}" for stage, line in cost.lines.items()
    }
    log.info("calibrated", **found)
    return cost


def measure(engine: Engine, seconds_max: float = _SECONDS_MAX) -> Cost:
    """What real images of growing size take, alone and together, for about `seconds_max`; at least one is made."""
    started = time.perf_counter()
    rounds = [(size, count) for size in _sizes(engine) for count in (1, 4)]
    fastest: dict[tuple[Size, int], dict[str, tuple[float, float]]] = {}
    taken: dict[tuple[Size, int], float] = {}
    seconds = 0.0
    # The very first is cold. Each comes twice, long after itself: a machine that slows down meanwhile disturbs but one.
    for number, once in enumerate([rounds[0], *rounds, *rounds]):
        is_again = number > len(rounds)
        if is_again and once not in fastest:
            continue
        left = seconds_max - (time.perf_counter() - started)
        if number and (taken[once] if is_again else 4 * seconds) > left:  # the next one is at most four times as large
            break
        begun = time.perf_counter()
        try:
            found = _measured(engine, *once, 2 if number else 1, f"calibration {number}")
        except Exception as error:
            if not fastest or not memory.is_exhausted(error):
                raise
            memory.release()  # so many at once need not fit
            continue
        taken[once] = seconds = time.perf_counter() - begun
        if is_again:
            found = {stage: min(point, fastest[once][stage]) for stage, point in found.items()}
        fastest[once] = found
    points = {stage: [found[stage] for found in fastest.values()] for stage in STAGES}
    return Cost({stage: Line.through(points[stage]) for stage in STAGES}, is_calibrated=True)


def _sizes(engine: Engine) -> list[Size]:
    """Squares from the smallest to the model's default size, each four times as large as the one before."""
    edge = max(_EDGE_MIN, min(engine.facts.default_size.width, engine.facts.default_size.height))
    edges = [edge]
    while edges[0] >= 2 * _EDGE_MIN:
        edges.insert(0, edges[0] // 2 // EDGE_MULTIPLE * EDGE_MULTIPLE)
    return [Size(edge, edge) for edge in edges]


def _measured(engine: Engine, size: Size, count: int, steps: int, name: str) -> dict[str, tuple[float, float]]:
    """(units, seconds) of every stage for `count` edits of `size`, whose prompts and references no cache holds."""
    channels, scale = 4 if engine.facts.has_native_alpha else 3, engine.facts.default_guidance_scale
    reference = Reference(Pixels(size, channels, bytes(size.pixels * channels)), b"")
    drawings = []
    for i in range(count):
        request = Request("calibration", Operation.EDIT, f"{name} {size} {i}", (reference,), size, i, steps, scale)
        drawings.append(engine.drawing(request))
    engine.begin(drawings)
    loads = [load_of(engine, drawing) for drawing in drawings]
    started = time.perf_counter()
    for _ in range(steps):
        engine.step(drawings)
    stepped = time.perf_counter()
    pictures = engine.decode(drawings)
    decoded = time.perf_counter()
    assert all(np.isfinite(picture).all() for picture in pictures), "the warm-up picture is not finite"
    result = resolve(drawings[0], pictures[0])
    made_by = Provenance(engine.facts.name, 0, steps, __version__, "")
    image.encode(result.pixels, drawings[0].request.output, result.alpha_method, made_by)
    encoded = time.perf_counter()
    megapixels = loads[0].output_megapixels
    return {
        "text": (count, drawings[0].text_seconds),
        "references": (megapixels, drawings[0].references_seconds),
        "step": (sum(load.work for load in loads), (stepped - started) / steps),
        "decode": (count * megapixels, decoded - stepped),
        "encode": (megapixels, encoded - decoded),
    }


def _path(engine: Engine) -> Path:
    key = f"{engine.identity}, {__version__}"
    return user_cache_path("kleinserve") / f"cost-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _keep(path: Path, cost: Cost) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(cost.dump()))
        part.replace(path)
    except OSError as error:  # a read-only home: the next start measures again
        log.warning("calibration not kept", path=str(path), error=str(error))
