"""Readers that are slow or stop: what they miss, what ends them, and that nobody else notices."""

import asyncio
import hashlib
import time

import grpc
from klein.v1 import image_pb2, image_pb2_grpc

from tests.client.relay import Relay
from tests.e2e.calls import NARROW, NONE, final, generate, opened, refused, until
from tests.e2e.conftest import Serving

LATENT = image_pb2.PreviewOptions(format="PREVIEW_FORMAT_LATENT")
STALLED = 'klein_requests_total{code="ABORTED",operation="generate",reason="READER_STALLED"}'
ENCODED = 'klein_stage_seconds_count{stage="encode"}'
SKIPPED = 'klein_previews_total{outcome="skipped"}'


def heavy() -> image_pb2.GenerateRequest:
    """49 previews of 9 KiB: several times what the window and the server's write buffer hold."""
    return generate(0, (192, 192), 50, preview=LATENT)


async def neighbours(target: str) -> float:
    """The seconds that the slowest of three callers waits for its image."""

    async def one(seed: int) -> float:
        async with opened(target, ("grpc.use_local_subchannel_pool", 1)) as channel:
            started = time.monotonic()
            await final(channel, generate(seed, (128, 128), 12, preview=NONE))
            return time.monotonic() - started

    return max(await asyncio.gather(*(one(seed) for seed in range(3))))


async def test_only_the_slow_reader_misses_previews(serving: Serving, channel: grpc.aio.Channel) -> None:
    """Who stops reading skips previews and is told how many; who reads beside it waits as beside a quick reader."""
    quick = asyncio.create_task(final(channel, heavy()))
    seconds = await neighbours(serving.target)
    _, completed = await quick
    before, encoded = serving.counted(SKIPPED), serving.counted(ENCODED)
    async with opened(serving.target, *NARROW) as narrow:
        call = image_pb2_grpc.ImageServiceStub(narrow).Generate(heavy())
        await until(call, "started")
        assert await neighbours(serving.target) < 3 * seconds + 0.5
        await serving.counts(ENCODED, encoded + 4)  # its own image is ready, too
        assert serving.counted("klein_running_requests") == 1
        events = []
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
        assert await call.code() is grpc.StatusCode.OK
    previews = [event.preview for event in events if event.HasField("preview")]
    missed = sum(preview.skipped for preview in previews)
    assert missed == events[-1].completed.previews_skipped == serving.counted(SKIPPED) - before
    assert missed + len(previews) == 49
    assert missed > max(24, completed.previews_skipped)
    assert [preview.step for preview in previews] == sorted(preview.step for preview in previews)
    assert previews[-1].step == 49
    header = next(event.image_header for event in events if event.HasField("image_header"))
    assert hashlib.sha256(b"".join(event.image_chunk.data for event in events)).digest() == header.sha256


async def test_stalled_at_previews(faulty: Serving) -> None:
    """A reader that takes nothing for reader_stall_seconds is ended with READER_STALLED, and can read that later."""
    before = faulty.counted(STALLED)
    async with opened(faulty.target, *NARROW) as narrow:
        call = image_pb2_grpc.ImageServiceStub(narrow).Generate(heavy())
        await until(call, "started")
        await faulty.counts(STALLED, before + 1)
        assert faulty.counted("klein_running_requests") == 0
        assert faulty.counted(SKIPPED) > 0
        code, reason, details = await refused(call)
        assert (code, reason, set(details)) == (grpc.StatusCode.ABORTED, "READER_STALLED", {"ErrorInfo"})


async def test_stalled_at_the_image(faulty: Serving) -> None:
    """Who stops reading an image that was written down is told so, and has paid; a later caller is served."""
    before, paid = faulty.counted(STALLED), faulty.counted("klein_cost_microusd_total")
    async with opened(faulty.target, *NARROW) as narrow:
        output = image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")
        request = generate(0, (208, 224), 1, output=output, preview=NONE)
        call = image_pb2_grpc.ImageServiceStub(narrow).Generate(request)
        await until(call, "image_header")
        await faulty.counts(STALLED, before + 1)
        assert faulty.counted("klein_cost_microusd_total") == paid + 14_000
        code, reason, _ = await refused(call)
        assert (code, reason) == (grpc.StatusCode.ABORTED, "READER_STALLED")
    async with opened(faulty.target) as channel:
        await final(channel, generate())
    assert faulty.counted("klein_cost_microusd_total") == paid + 28_000


async def test_a_slow_line_is_no_stall(faulty: Serving) -> None:
    """A line of 60 KiB/s takes a whole image, over several times the stall limit, and nobody calls it stalled."""
    before, output = faulty.counted(STALLED), image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")
    with Relay(faulty.target, bytes_per_second=60 * 1024) as relay:
        async with opened(relay.target, *NARROW) as narrow:
            call = image_pb2_grpc.ImageServiceStub(narrow).Generate(
                generate(0, (208, 224), 1, output=output, preview=NONE)
            )
            await until(call, "image_header")
            started, events = time.monotonic(), []
            while (event := await call.read()) is not grpc.aio.EOF:
                events.append(event)
            assert await call.code() is grpc.StatusCode.OK
    assert sum(len(event.image_chunk.data) for event in events) == 208 * 224 * 4
    assert time.monotonic() - started > 2  # seconds; the limit is 1
    assert faulty.counted(STALLED) == before
