"""What arrives when: seeded, so that every contestant answers the same requests. Knows no server."""

import io
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count

import numpy as np
from PIL import Image

SHARES = (0.6, 0.3, 0.1)  # of the small, the middle and the large size
EDIT_EVERY = 5  # a fifth are edits
POPULAR_SHARE = 0.2  # of the prompts: drawn from a few, so that some repeat, as people's do
POPULAR_PROMPTS = 8

COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "black", "white", "gray", "cyan", "brown"]
SHAPES = ["circle", "square", "triangle", "star", "ring", "diamond", "heart", "cross"]
SCALES = ("small", "medium", "large")


@dataclass(frozen=True)
class Arrival:
    """One request: seconds after the start, square edge in pixels, and what it asks. `reference`: a PNG, of edits.

    `key`: its idempotency key, which HTTP's peers have none of; empty: none.
    """

    at_seconds: float
    edge: int
    prompt: str
    seed: int
    reference: bytes | None = None
    timeout_seconds: float | None = None
    key: str = ""

    @property
    def is_edit(self) -> bool:
        return self.reference is not None


def poisson(per_second: float, count: int, edges: Sequence[int], seed: int) -> list[Arrival]:
    """`count` arrivals with exponential gaps, sizes and edits mixed in exact shares and shuffled."""
    draw = random.Random(f"gaps {seed}")
    times = accumulate(draw.expovariate(per_second) for _ in range(count))
    return [replace(arrival, at_seconds=t) for arrival, t in zip(burst(count, edges, seed), times, strict=True)]


def burst(count: int, edges: Sequence[int], seed: int) -> list[Arrival]:
    """`count` arrivals at once."""
    draw = random.Random(f"requests {seed}")
    ends = [round(count * share) for share in accumulate(SHARES)]
    sizes = [edges[sum(i >= end for end in ends[:-1])] for i in range(count)]
    kinds = [(edge, i % EDIT_EVERY == EDIT_EVERY // 2) for i, edge in enumerate(sizes)]
    draw.shuffle(kinds)
    return [_arrival(edge, is_edit, draw) for edge, is_edit in kinds]


def each_class(edges: Sequence[int], times: int, seed: int) -> list[Arrival]:
    """Every size as a generation and as an edit, `times` times: for warming up and for lone times."""
    draw = random.Random(f"classes {seed}")
    return [_arrival(edge, is_edit, draw) for _ in range(times) for edge in edges for is_edit in (False, True)]


def alone(edge: int, times: int, seed: int) -> list[Arrival]:
    """Generations of one size."""
    draw = random.Random(f"alone {seed}")
    return [_arrival(edge, False, draw) for _ in range(times)]


def with_timeouts(arrivals: list[Arrival], seconds: dict[tuple[int, bool], float], factor: float) -> list[Arrival]:
    """The arrivals with a deadline of `factor` times the lone time of their size and kind."""
    return [replace(a, timeout_seconds=factor * seconds[a.edge, a.is_edit]) for a in arrivals]


def with_keys(arrivals: Sequence[Arrival], every: int) -> list[Arrival]:
    """Every so many of generations, and of edits, get a key of their own; the same for nobody twice, in no run."""
    counts = {False: count(), True: count()}
    return [a if next(counts[a.is_edit]) % every else replace(a, key=uuid.uuid4().hex) for a in arrivals]


def _arrival(edge: int, is_edit: bool, draw: random.Random) -> Arrival:
    seed = draw.getrandbits(32)
    if is_edit:
        prompt = f"make it {draw.choice(COLOURS)}, {draw.choice(COLOURS)} background"
        return Arrival(0.0, edge, prompt, seed, picture(edge, seed))
    if draw.random() < POPULAR_SHARE:
        draw = random.Random(f"popular {draw.randrange(POPULAR_PROMPTS)}")
    scale, colour, shape = draw.choice(SCALES), draw.choice(COLOURS), draw.choice(SHAPES)
    return Arrival(0.0, edge, f"a {scale} {colour} {shape} on a {draw.choice(COLOURS)} background", seed)


def picture(edge: int, seed: int) -> bytes:
    """A PNG of smooth random colours; another one for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC).save(file, "PNG", compress_level=1)
    return file.getvalue()
