"""What becomes of calls and keys whose server hangs, dies or is restarted: forward.py's patience, the keys' commit."""

import asyncio
import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
from klein.v1 import image_pb2_grpc
from kleinclient import Client

from tests.e2e.calls import generate, opened, refused, until
from tests.replicas.cluster import Envoy, Server
from tests.replicas.conftest import Books

Stub = image_pb2_grpc.ImageServiceStub
KEYED = 12  # callers at once
CALLERS = 4  # whom one server alone can carry


async def test_a_paused_owner_bills_nothing(pair: tuple[Server, Server], books: Books) -> None:
    """A server that hangs longer than its ownership loses its keys: the other one draws the image with the same seed
    and bills it; when the first goes on it delivers nothing, and there is one bill.
    """
    first, second = pair
    tag = uuid.uuid4().hex
    asked = generate(steps=150, idempotency_key=tag, client_tag=tag)
    async with opened(first.target) as here, opened(second.target) as there:
        running = Stub(here).Generate(asked)
        await until(running, "progress")
        first.send(signal.SIGSTOP)
        try:
            assert books.billed_for([tag]) == [0]
            taken_over = [event async for event in Stub(there).Generate(asked, timeout=200)]
            assert taken_over[0].accepted.seed == asked.options.seed
            assert taken_over[-1].HasField("completed")
            assert books.owner(tag) == "b"
        finally:
            first.send(signal.SIGCONT)
        code, reason, _ = await refused(running)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
        again = [event async for event in Stub(here).Generate(asked)]
    assert again[0].accepted.is_replay
    assert books.billed_for([tag]) == [1]


def test_killed_under_keyed_load(pair: tuple[Server, Server], front: str, books: Books) -> None:
    """A server is killed while it draws: each of kleinclient's callers gets an image all the same, billed once."""
    tags = [uuid.uuid4().hex for _ in range(KEYED)]
    has_begun = threading.Semaphore(0)

    with Client(front) as klein, ThreadPoolExecutor(KEYED) as pool:

        def draw(tag: str) -> int:
            stream = klein.generate("a red circle", size=(64, 64), steps=60, client_tag=tag, timeout=240)
            for event in stream:
                if type(event).__name__ == "Accepted":
                    has_begun.release()
            return len(stream.result().data)

        drawing = [pool.submit(draw, tag) for tag in tags]
        for _ in tags:
            has_begun.acquire(timeout=60)
        owned = books.rows("SELECT count(*) FROM job WHERE owner = 'b' AND state = 'running'")
        pair[1].kill()
        sizes = [each.result(240) for each in drawing]
    assert owned[0][0] != 0, "nothing ran on the one that was killed"
    assert min(sizes) > 0
    assert books.billed_for(tags) == [1] * KEYED


async def test_rolling_restart(started: tuple[Server, Server], balancer: Envoy) -> None:
    """One server comes back under load and the other is ended: no caller notices, though none tries again."""
    first, second = started
    await asyncio.to_thread(balancer.until_healthy, first)
    is_over = asyncio.Event()

    async def call(channel: grpc.aio.Channel, number: int) -> int:
        drawn = 0
        while not is_over.is_set():
            events = [event async for event in Stub(channel).Generate(generate(seed=number))]
            assert events[-1].HasField("completed")
            drawn += 1
        return drawn

    def roll() -> None:
        if second.is_alive:
            second.stop()
        second.start()
        balancer.until_healthy(second)
        first.stop()

    async def rolled() -> None:
        try:
            await asyncio.to_thread(roll)
        finally:
            is_over.set()

    async with opened(balancer.target, ("grpc.enable_retries", 0)) as channel:
        *drawn, _ = await asyncio.gather(*(call(channel, number) for number in range(CALLERS)), rolled())
    assert min(drawn) > 0
