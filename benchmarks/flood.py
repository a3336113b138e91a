"""Strangers' worst files beside healthy callers: what the callers notice, what each file takes, what stays in memory.

    .venv/bin/python -m benchmarks.flood [--seconds 60]

64² generations one after another, alone and beside a flood of hostile references (tests/codec/hostile.py makes them),
in one run; other callers' edits beside the flood; every file alone. The flooders leave when a file is accepted, since
half of them are whole pictures and to draw an edit of one is a load like any other: at the end they stay for it, and
what that does to small generations is told without a promise.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
from klein.v1 import image_pb2, image_pb2_grpc

from benchmarks import trace
from benchmarks.load import OK, closed_loop
from benchmarks.promises import Figure, quantile, report, told
from benchmarks.serving import MIB, Serving, ours
from benchmarks.wire import OPTIONS
from tests.codec.hostile import corpus

FLOODERS, HEALTHY = 8, 2
ANSWERS_LEAST = 20  # or it was no flood
SLOWER_MOST = 2.0  # p99 beside the flood, over alone
ANSWER_SECONDS, PEAK_BYTES, LEFT_BYTES = 12.0, 1.8 * 1024 * MIB, 200 * MIB
BUDGET_SECONDS = 5.0  # of processor, for one reference: the server's default
SAMPLE_SECONDS = 0.25
SETTLE_SECONDS = 10.0  # until what the last file took has been given back


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    given = _arguments()
    files = {name: make() for name, make in corpus(given.size).items()}
    with TemporaryDirectory() as folder, ours(Path(folder) / "server.log") as server:
        figures = told(asyncio.run(flood(server, list(files.values()), given.seconds)))
        figures += told(asyncio.run(one_by_one(server, files)))
        figures += told(asyncio.run(drawn(server, list(files.values()), given.seconds)))
    return report(figures, given.json)


async def flood(server: Serving, files: Sequence[bytes], seconds: float) -> list[Figure]:
    """Healthy callers without and with the flood, and the memory around it."""
    await closed_loop(server.target, trace.each_class((64,), 2, 1), 1)
    alone = await _healthy(server, seconds, seed=2, edits=False)
    edits_alone = await _healthy(server, seconds / 2, seed=3, edits=True)
    before = server.held_bytes()
    async with _sampled(server) as held, _flooded(server.target, files, stays=False) as answers:
        beside = await _healthy(server, seconds, seed=4, edits=False)
        edits_beside = await _healthy(server, seconds, seed=5, edits=True)
    await asyncio.sleep(SETTLE_SECONDS)
    after = server.held_bytes()
    p99, p99_beside = quantile(alone, 0.99), quantile(beside, 0.99)
    delay = max(edits_beside, default=0.0) - quantile(edits_alone, 0.5)
    return [
        Figure("hostile answers during the flood", len(answers), least=ANSWERS_LEAST),
        Figure("64² generations alone, p99", p99, "s"),
        Figure("64² generations beside the flood, p99", p99_beside, "s"),
        Figure("beside the flood over alone", p99_beside / p99, "times", most=SLOWER_MOST),
        Figure("64² edits alone, p50", quantile(edits_alone, 0.5), "s"),
        Figure("64² edits beside the flood, delayed at most", delay, "s", most=BUDGET_SECONDS),
        Figure("memory before", before / MIB, "MiB"),
        Figure("memory at the peak", max(held, default=before) / MIB, "MiB", most=PEAK_BYTES / MIB),
        Figure("memory after, over before", (after - before) / MIB, "MiB", most=LEFT_BYTES / MIB),
    ]


async def drawn(server: Serving, files: Sequence[bytes], seconds: float) -> list[Figure]:
    """The same with a flood whose whole pictures are edited too."""
    async with _sampled(server) as held, _flooded(server.target, files, stays=True) as answers:
        beside = await _healthy(server, seconds, seed=6, edits=False)
    await asyncio.sleep(SETTLE_SECONDS)
    return [
        Figure("edits drawn in a flood that stays", answers.count(OK)),
        Figure("64² generations beside that flood, p50", quantile(beside, 0.5), "s"),
        Figure("64² generations beside that flood, p99", quantile(beside, 0.99), "s"),
        Figure("memory at the peak of that flood", max(held) / MIB, "MiB"),
        Figure("memory after that flood", server.held_bytes() / MIB, "MiB"),
    ]


async def one_by_one(server: Serving, files: dict[str, bytes]) -> list[Figure]:
    """How long each file's answer takes with nobody else there."""
    figures = []
    async with _stub(server.target) as stub:
        for name, data in files.items():
            clock = asyncio.get_running_loop().time
            started = clock()
            answer = await _edit(stub, data, stays=True)
            figures.append(Figure(f"{name}, alone ({answer})", clock() - started, "s", most=ANSWER_SECONDS))
    return figures


async def _healthy(server: Serving, seconds: float, seed: int, *, edits: bool) -> list[float]:
    """Seconds of each 64² image of a few callers who ask one after another."""
    kinds = trace.each_class((64,), round(50 * seconds), seed)
    arrivals = [arrival for arrival in kinds if arrival.is_edit == edits]
    found = await closed_loop(server.target, arrivals, HEALTHY, seconds)
    assert all(outcome.code == OK for outcome in found), {outcome.code for outcome in found}
    return [outcome.seconds for outcome in found]


@asynccontextmanager
async def _flooded(target: str, files: Sequence[bytes], *, stays: bool) -> AsyncIterator[list[str]]:
    """Callers, each on its own connection, who send one hostile file after another; their answers."""
    answers: list[str] = []

    async def flooder(number: int) -> None:
        async with _stub(target) as stub:
            turn = number
            while True:
                answers.append(await _edit(stub, files[turn % len(files)], stays=stays))
                turn += 1

    async with _beside(*(lambda n=n: flooder(n) for n in range(FLOODERS))):
        yield answers


@asynccontextmanager
async def _sampled(server: Serving) -> AsyncIterator[list[int]]:
    """What the server and its workers hold, looked at again and again."""
    held: list[int] = []

    async def sample() -> None:
        while True:
            held.append(await asyncio.to_thread(server.held_bytes))
            await asyncio.sleep(SAMPLE_SECONDS)

    async with _beside(sample):
        yield held


@asynccontextmanager
async def _beside(*work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """The work goes on within the block, and is cancelled after it."""
    tasks = [asyncio.ensure_future(one()) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def _stub(target: str) -> AsyncIterator[image_pb2_grpc.ImageServiceStub]:
    """On a connection of its own: who sends is known by it."""
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield image_pb2_grpc.ImageServiceStub(channel)


async def _edit(stub: image_pb2_grpc.ImageServiceStub, data: bytes, *, stays: bool) -> str:
    """How an edit of this file into 64² ends: the image or a status; "accepted" for who does not stay for more."""
    options = image_pb2.ImageOptions(width=64, height=64, seed=0, steps=1)
    reference = image_pb2.Reference(image=data)
    call = stub.Edit(image_pb2.EditRequest(prompt="make it green", references=[reference], options=options))
    try:
        async for _ in call:
            if not stays:
                call.cancel()
                return "accepted"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return OK


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    parser.add_argument("--size", type=float, default=1.0, help="of the files; 1: as large as the limits allow")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
