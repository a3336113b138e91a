"""Memory that large messages took goes back to the system, in a pause and under load (server.py, process.py)."""

import asyncio

import grpc
import psutil
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import edit, generate, opened, png, refused, until
from tests.e2e.conftest import ENDLESS, Serving, served

MIB = 2**20
LARGE = b"x" * 9 * MIB  # below what malloc maps by itself and unmaps at once


async def test_freed_memory_goes_back() -> None:
    """What a server took to refuse eight messages of 36 MiB is gone, but for a part, a few seconds later."""
    with served() as server:
        async with opened(server.target) as channel:
            await _freed(server, channel)


async def test_freed_memory_goes_back_under_load() -> None:
    """The same while an image is drawn, within half a minute."""
    with served(KLEINSERVE_MAX_STEPS=str(ENDLESS)) as server:
        async with opened(server.target) as channel:
            drawn = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(steps=ENDLESS))
            await until(drawn, "progress")
            await _freed(server, channel)
            assert not drawn.done()
            drawn.cancel()


async def _freed(server: Serving, channel: grpc.aio.Channel) -> None:
    """Have large messages refused, and wait until most of what the server took for them is gone."""
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    stub = image_pb2_grpc.ImageServiceStub(channel)
    calls = asyncio.gather(*(refused(stub.Edit(edit([png(), *[LARGE] * 3]))) for _ in range(8)))
    taken = 0  # at most: the server may give back before the last call has ended
    while not calls.done():
        await asyncio.sleep(0.01)
        taken = max(taken, process.memory_info().rss - before)
    assert {reason for _, reason, _ in await calls} == {"REFERENCE_UNREADABLE"}
    assert taken > 64 * MIB  # or this shows nothing
    async with asyncio.timeout(60):
        while process.memory_info().rss - before > taken / 4:  # noqa: ASYNC110 - the system's, with nothing to await
            await asyncio.sleep(0.2)
