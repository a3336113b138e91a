"""Memory that large messages took goes back to the system once nobody calls (server.py, process.py)."""

import asyncio

import psutil
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import edit, opened, png, refused
from tests.e2e.conftest import Serving

MIB = 2**20
LARGE = b"x" * 9 * MIB  # below what malloc maps by itself and unmaps at once


async def test_freed_memory_goes_back(serving: Serving) -> None:
    """What a server kept after refusing eight messages of 36 MiB is gone, but for a part, a few seconds later."""
    process = psutil.Process(serving.process.pid)
    before = process.memory_info().rss
    async with opened(serving.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        calls = (refused(stub.Edit(edit([png(), *[LARGE] * 3]))) for _ in range(8))
        assert {reason for _, reason, _ in await asyncio.gather(*calls)} == {"REFERENCE_UNREADABLE"}
        kept = process.memory_info().rss - before
        assert kept > 64 * MIB  # or this shows nothing
        async with asyncio.timeout(60):
            while process.memory_info().rss - before > kept / 3:  # noqa: ASYNC110 - the system's, with nothing to await
                await asyncio.sleep(0.2)
