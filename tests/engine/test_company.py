"""The same request gives the same bytes whatever happened before it, and almost the same ones in company.

    python -m tests.engine.test_company 200

draws that many random cases with one thread and as many with four; `make test` has a few.
"""

import itertools
import random
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kleinserve.core import Background, Operation, Output, Request, Size
from kleinserve.engine.engine import Engine
from numpy.typing import NDArray

from tests.engine.drawing import ask, begin, decode, denoise, draw, finish, loaded, reference

EDGES = (64, 80, 96, 128)
PROMPTS = ("a red circle", "make it blue", "the letter K on green", "two of them side by side")
CASES = 3
LEVELS_MAX = 1.0 + 2 / 255  # one of 255; where opacity differs by one, so may what is shown of the colour


def any_request(chance: random.Random, seed: int) -> Request:
    """Small, of any size, with up to two references, opaque or cut out."""
    size = Size(chance.choice(EDGES), chance.choice(EDGES))
    references = tuple(
        reference(chance.choice(EDGES), chance.choice(EDGES), chance.randrange(100), 4)
        for _ in range(chance.choice((0, 0, 1, 2)))
    )
    if references and chance.random() < 0.3:
        references = (replace(references[0], digest=b""), *references[1:])
    output = Output(background=chance.choice((Background.OPAQUE, Background.TRANSPARENT)))
    operation = Operation.EDIT if references else Operation.GENERATE
    prompt = f"{chance.choice(PROMPTS)} {chance.randrange(50)}"
    return ask(str(seed), operation, prompt, references, size, seed, chance.randint(1, 3), 1.0, output=output)


def in_company(engine: Engine, request: Request, others: list[Request]) -> NDArray[Any]:
    """The request's picture, begun, stepped and decoded among the others, while another thread encodes prompts."""
    renders = begin(engine, [request, *others])
    is_over = threading.Event()

    def compute() -> None:
        for i in itertools.takewhile(lambda _: not is_over.is_set(), itertools.count()):
            unheard = ask("x", Operation.GENERATE, f"{request.request_id} {i}", (), Size(64, 64), 0, 1, 1.0)
            finish(engine.text([engine.render(unheard)]))

    beside = threading.Thread(target=compute)
    beside.start()
    try:
        denoise(engine, renders)
    finally:
        is_over.set()
        beside.join()
    decode(engine, [render for render in renders if render.request.size == request.size])
    picture = renders[0].picture
    assert picture is not None
    return picture


def check(engine: Engine, uncached: Engine, case: int) -> None:
    chance = random.Random(case)
    request = any_request(chance, case)
    others = [any_request(chance, 1000 * case + i) for i in range(chance.randint(1, 3))]
    others += [replace(request, options=replace(request.options, seed=case + 1))]
    # First met in company, so that what the caches keep of it was computed there.
    amid = shown(in_company(engine, request, others))
    [alone], [again], [fresh] = draw(engine, request), draw(engine, request), draw(uncached, request)
    assert np.array_equal(alone, fresh), f"case {case}: other bytes after company"
    assert np.array_equal(alone, again), f"case {case}: other bytes a second time"
    apart = np.abs(amid - shown(alone)).max()
    assert apart <= LEVELS_MAX, f"case {case}: {apart} levels apart in company"


def shown(picture: NDArray[Any]) -> NDArray[Any]:
    """As it is seen: colour as much as it is opaque, and opacity."""
    levels = picture.astype(float)
    if picture.shape[-1] == 4:
        levels[..., :3] *= levels[..., 3:] / 255
    return levels


def engines(threads: int) -> tuple[Engine, Engine]:
    """One that keeps what it encodes, one that does not."""
    return loaded(threads=threads), loaded(threads=threads, prompt_cache_bytes_max=0, reference_cache_bytes_max=0)


@pytest.mark.parametrize("threads", [1, 4])
def test_company_leaves_no_trace(threads: int) -> None:
    """Alone after company, by cache or not, a request has the bytes it has on a fresh cache; amid, within a level."""
    pair = engines(threads)
    for case in range(CASES):
        check(*pair, case)


if __name__ == "__main__":
    for threads in (1, 4):
        pair = engines(threads)
        for case in range(int(sys.argv[1])):
            check(*pair, case)
        print(f"{sys.argv[1]} cases, {threads} threads: same bytes alone, within 1 of 255 in company", flush=True)
