"""Measures the engine's stages before it serves, and keeps what it found on disk. The warm-up images are these."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from platformdirs import user_cache_path

from kleinserve import __version__
from kleinserve.core import EDGE_MULTIPLE, Operation, Options, Pixels, Reference, Request, Size
from kleinserve.errors import AcceleratorOutOfMemory
from kleinserve.scheduler.cost import STAGES, Cost, Line
from kleinserve.scheduler.engine import Engine, Render

T = TypeVar("T")
Clock = Callable[[], float]
Points = dict[str, tuple[float, float]]  # units and seconds of every stage

_SECONDS_MAX = 10.0
_EDGE_MIN = 64
_MEASURED = tuple(stage for stage in STAGES if stage != "encode")  # which is not the engine's: it is learned later
_FAR = 8.0  # times what a kept calibration says that a stage takes: then it is another machine's
_NOISE_SECONDS = 0.02  # that a busy machine adds to anything

log = structlog.get_logger()


class Run(Protocol):
    """Calls a function on the thread that will serve, and returns what it returns."""

    def __call__(self, function: Callable[[], T]) -> T: ...


class Bench:
    """An engine with the two threads that will serve: `steps` and `aside`."""

    def __init__(self, engine: Engine, steps: Run, aside: Run, clock: Clock = time.perf_counter):
        self.engine, self._steps, self._aside, self.clock = engine, steps, aside, clock

    def warm(self) -> None:
        self._aside(self.engine.warm)
        self._steps(self.engine.warm)

    def sizes(self) -> list[Size]:
        """Squares from the smallest to the model's default size, each four times as large as the one before."""
        default = self.engine.facts.default_size
        edges = [max(_EDGE_MIN, min(default.width, default.height))]
        while edges[0] >= 2 * _EDGE_MIN:
            edges.insert(0, edges[0] // 2 // EDGE_MULTIPLE * EDGE_MULTIPLE)
        return [Size(edge, edge) for edge in edges]

    def measure(self, size: Size, count: int, steps: int, name: str) -> Points:
        """What every stage takes for `count` edits of `size`, whose prompts and references no cache holds."""
        renders = [self._render(size, i, steps, f"{name} {size} {i}") for i in range(count)]
        text = self._aside(lambda: self._pieces(self.engine.text(renders)))
        references = [self._aside(lambda r=render: self._pieces(self.engine.begin(r))) for render in renders]  # type: ignore[misc]
        demands = [self.engine.demand(render) for render in renders]
        stepped = self._steps(lambda: self._stepped(renders, steps))
        decoded = self._aside(lambda: self._pieces(self.engine.decode(renders)))
        for render in renders:
            self.engine.resolve(render)
        megapixels = demands[0].output_megapixels
        return {
            "text": (count, text),
            "references": (demands[0].reference_megapixels, references[0]),
            "step": (sum(demand.work for demand in demands), stepped / steps),
            "decode": (count * megapixels, decoded),
        }

    def _render(self, size: Size, seed: int, steps: int, prompt: str) -> Render:
        facts = self.engine.facts
        channels = 4 if facts.has_native_alpha else 3
        reference = Reference(Pixels(size, channels, bytes(size.pixels * channels)), b"")
        options = Options(seed, steps, facts.default_guidance_scale)
        return self.engine.render(Request("calibration", Operation.EDIT, prompt, (reference,), size, options))

    def _stepped(self, renders: list[Render], steps: int) -> float:
        started = self.clock()
        for _ in range(steps):
            self.engine.step(renders)
        return self.clock() - started

    def _pieces(self, pieces: Iterator[None]) -> float:
        started = self.clock()
        for _ in pieces:
            pass
        return self.clock() - started


def calibrate(bench: Bench) -> Cost:
    """Make warm-up images and learn what every stage costs.

    What was found before for the same checkpoint, device and version is read back, where it is anything like what the
    warm-up image takes. Raises what a request would.
    """
    bench.warm()
    path = _path(bench.engine.identity)
    cost = _kept(path)
    if cost is None or not _is_near(cost, bench):
        cost = measure(bench)
        _keep(path, cost)
    found = {
        stage: f"{line.fixed:.3g} s + {line.per_unit:.3g} s / {STAGES[stage]}" for stage, line in cost.lines.items()
    }
    log.info("calibrated", **found)
    return cost


def measure(bench: Bench, seconds_max: float = _SECONDS_MAX) -> Cost:
    """What real images of growing size take, alone and together, for about `seconds_max`; at least one is made."""
    started = bench.clock()
    rounds = [(size, count) for size in bench.sizes() for count in (1, 4)]
    fastest: dict[tuple[Size, int], Points] = {}
    taken: dict[tuple[Size, int], float] = {}
    seconds = 0.0
    # The very first is cold. Each comes twice, long after itself: a machine that slows down meanwhile disturbs but one.
    for number, once in enumerate([rounds[0], *rounds, *rounds]):
        is_again = number > len(rounds)
        if is_again and once not in fastest:
            continue
        left = seconds_max - (bench.clock() - started)
        if number and (taken[once] if is_again else 4 * seconds) > left:  # the next one is at most four times as large
            break
        begun = bench.clock()
        try:
            found = bench.measure(*once, 2 if number else 1, f"calibration {number}")
        except AcceleratorOutOfMemory:
            if not fastest:
                raise
            found = {}
        if not found:
            bench.engine.release()  # so many at once need not fit
            continue
        taken[once] = seconds = bench.clock() - begun
        if is_again:
            found = {stage: min(point, fastest[once][stage]) for stage, point in found.items()}
        fastest[once] = found
    points = {stage: [found[stage] for found in fastest.values()] for stage in _MEASURED}
    return Cost({stage: Line.through(points.get(stage, ())) for stage in STAGES}, is_calibrated=True)


def _is_near(cost: Cost, bench: Bench) -> bool:
    """Whether a warm-up image, the second, which is warm, takes about what the cost says."""
    size = bench.sizes()[0 if bench.engine.facts.device == "cpu" else -1]
    for number in range(2):
        found = bench.measure(size, 1, 1, f"warm-up {number}")
    for stage, (units, seconds) in found.items():
        predicted = cost.lines[stage].seconds(units)
        is_far = not seconds / _FAR <= predicted <= seconds * _FAR
        if is_far and abs(predicted - seconds) > _NOISE_SECONDS:
            log.warning("kept calibration is far off", stage=stage, predicted_seconds=predicted, seconds=seconds)
            return False
    return True


def _path(identity: str) -> Path | None:
    """Where the calibration of this engine is kept; None where there is no home to keep it in."""
    key = f"{identity}, {__version__}"
    try:
        home = user_cache_path("kleinserve")
    except (OSError, RuntimeError, KeyError):  # a user without a name
        return None
    return home / f"cost-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json" if home.is_absolute() else None


def _kept(path: Path | None) -> Cost | None:
    try:
        return None if path is None else Cost.load(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # there is none, or it is not ours


def _keep(path: Path | None, cost: Cost) -> None:
    try:
        if path is None:
            raise FileNotFoundError("this user has no home")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(cost.dump()))
        part.replace(path)
    except OSError as error:  # a read-only home: the next start measures again
        log.warning("calibration not kept", path=str(path), error=str(error))
