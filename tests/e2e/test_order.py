"""Who goes first, as callers see it."""

import asyncio
import time

import grpc
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import final, generate, opened, until
from tests.e2e.conftest import ENDLESS, Serving


async def test_a_small_request_overtakes_a_large_one_that_is_running(serving: Serving) -> None:
    """A 64² request is answered between two steps of a long 256² one, which then goes on to its own image."""
    async with opened(serving.target) as channel:
        large = asyncio.create_task(final(channel, generate(0, (256, 256), 50)))
        await serving.counts("klein_running_requests", 1)
        await final(channel, generate(1))
        assert not large.done()
        await large


async def test_a_small_request_overtakes_a_large_one_that_is_being_decoded(serving: Serving) -> None:
    """A 64² request is begun, stepped and decoded while a 1024² one is decoded, which is the same for it."""
    async with opened(serving.target) as channel:
        request = generate(0, (1024, 1024), 1)
        alone, _ = await final(channel, request)
        steps = 'klein_stage_seconds_count{stage="step"}'
        before = serving.counted(steps)
        large = asyncio.create_task(final(channel, request))
        await serving.counts(steps, before + 1)
        started = time.monotonic()
        await final(channel, generate(1))
        seconds = time.monotonic() - started
        picture, completed = await large
        assert seconds < completed.timings.decode.ToNanoseconds() / 1e9 / 2
        assert (picture == alone).all()


async def test_batch_work_waits_for_interactive_work(single: Serving) -> None:
    """Of requests of one size that come together, interactive ones finish first and batch ones last."""
    async with opened(single.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        busy = stub.Generate(generate(9, (256, 256), ENDLESS, priority="PRIORITY_INTERACTIVE"))
        await until(busy, "progress")

        async def finished(priority: str, seed: int) -> tuple[float, str]:
            await final(channel, generate(seed, (192, 192), 8, priority=priority))
            return time.monotonic(), priority

        names = ["PRIORITY_BATCH", "PRIORITY_STANDARD", "PRIORITY_INTERACTIVE"]
        ends = [asyncio.create_task(finished(name, seed)) for seed, name in enumerate(names)]
        await ends[2]  # it overtakes the long one, too
        await single.counts("klein_queue_depth", 2)
        busy.cancel()
        assert [priority for _, priority in sorted(await asyncio.gather(*ends))] == names[::-1]


async def test_positions_follow_the_order(single: Serving) -> None:
    """A waiting request learns that it moved back when a shorter one comes, and forward when that one has gone."""
    async with opened(single.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        busy = stub.Generate(generate(0, (256, 256), ENDLESS, priority="PRIORITY_INTERACTIVE"))
        await until(busy, "progress")
        long = stub.Generate(generate(1, (256, 256), 20))
        assert (await until(long, "queued")).queued.position == 0
        short = stub.Generate(generate(2, (192, 192), 4))
        assert (await until(long, "queued")).queued.position == 1
        short.cancel()
        moved = (await until(long, "queued")).queued
        assert moved.position == 0
        assert moved.estimated_wait.ToNanoseconds() > 0
        busy.cancel()
        await until(long, "completed")
        assert await short.code() is grpc.StatusCode.CANCELLED
