"""Ends of a server under load: the notice, the grace period, a second signal. What finishes is in test_stream.py."""

import asyncio
import json
import signal
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import NARROW, final, generate, opened, refused, until
from tests.e2e.conftest import ENDLESS, served

STEPS_UNREAD = 20  # the previews of so many are more than a narrow window and all buffers hold
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


Health = grpc.aio.UnaryStreamCall[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


async def watching(channel: grpc.aio.Channel) -> Health:
    """A watch of the server's health that has told that it serves."""
    watch: Health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    return watch


async def ended(watch: Health) -> None:
    """Wait until the server says that it does not serve any more."""
    while (await watch.read()).status != NOT_SERVING:
        pass


async def test_notice_and_grace() -> None:
    """From SIGINT on probes fail; requests are taken for the notice; what the grace does not suffice for ends."""
    settings = {"KLEINSERVE_DRAIN_NOTICE_SECONDS": "2", "KLEINSERVE_DRAIN_GRACE_SECONDS": "0.3"}
    with served(KLEINSERVE_MAX_STEPS=str(ENDLESS), **settings) as server:
        async with opened(server.target) as channel, opened(server.target, *NARROW) as narrow:
            ahead = generate(0, (256, 256), ENDLESS, priority="PRIORITY_INTERACTIVE")
            running = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(0, (256, 256), ENDLESS))
            await until(running, "progress")
            unread = image_pb2_grpc.ImageServiceStub(narrow).Generate(ahead)
            await until(unread, "started")
            health = await watching(channel)
            server.process.send_signal(signal.SIGINT)
            await ended(health)
            assert server.page("/readyz") == (503, "draining\n")
            assert server.page("/healthz") == (200, "draining\n")
            await final(channel, generate())  # routers need a moment to look elsewhere
            code, reason, details = await refused(running)
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert set(details) == {"ErrorInfo", "RetryInfo"}
            assert await asyncio.to_thread(server.process.wait, 30) == 0  # whoever does not read


async def test_stuck_reader(tmp_path: Path) -> None:
    """Who takes nothing while the server drains does not hold it up, and the server's word for it is DRAINING."""
    log, grace = tmp_path / "log", {"KLEINSERVE_DRAIN_GRACE_SECONDS": "0.3"}
    with served(log=log, KLEINSERVE_MAX_STEPS=str(ENDLESS), **grace) as server:
        async with opened(server.target, *NARROW) as narrow:
            request = generate(0, (256, 256), ENDLESS, preview=image_pb2.PreviewOptions(format="PREVIEW_FORMAT_LATENT"))
            call = image_pb2_grpc.ImageServiceStub(narrow).Generate(request)
            await until(call, "started")
            async with asyncio.timeout(60):  # previews of 64 KiB: after a few no more fit on the way to it
                while server.counted('klein_stage_seconds_count{stage="step"}') < STEPS_UNREAD:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 30) == 0
    ends = [json.loads(line) for line in log.read_text().splitlines() if "request finished" in line]
    assert [(end["code"], end["reason"]) for end in ends] == [("UNAVAILABLE", "DRAINING")]


async def test_connections_are_told_to_go() -> None:
    """When the notice is over no connection takes another call and no new one is made, while what runs goes on."""
    settings = {"KLEINSERVE_DRAIN_NOTICE_SECONDS": "1", "KLEINSERVE_DRAIN_GRACE_SECONDS": "60"}
    with served(KLEINSERVE_MAX_STEPS=str(ENDLESS), **settings) as server:
        async with opened(server.target) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            running = stub.Generate(generate(0, (256, 256), ENDLESS))
            await until(running, "progress")
            health = await watching(channel)
            server.process.send_signal(signal.SIGTERM)
            await ended(health)
            asked = image_pb2.GetCapabilitiesRequest()
            with suppress(grpc.aio.AioRpcError):
                while await stub.GetCapabilities(asked, timeout=60):  # until the notice is over
                    pass
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetCapabilities(asked, timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "refused" in str(caught.value.details())
            await until(running, "progress")
            running.cancel()
            assert await asyncio.to_thread(server.process.wait, 30) == 0


async def test_watcher() -> None:
    """Who watches the server's health, as clients that balance do, does not hold up the end of an idle one."""
    with served() as server:
        async with opened(server.target) as channel:
            health = await watching(channel)
            server.process.send_signal(signal.SIGTERM)
            await ended(health)
            assert await asyncio.to_thread(server.process.wait, 20) == 0  # the grace is 30 s


async def test_second_signal() -> None:
    """A second signal ends a draining server at once; its callers see a lost connection."""
    with served(KLEINSERVE_MAX_STEPS=str(ENDLESS)) as server:
        async with opened(server.target) as channel:
            call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(0, (256, 256), ENDLESS))
            await until(call, "progress")
            health = await watching(channel)
            server.process.send_signal(signal.SIGINT)
            await ended(health)
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 25) == 128 + signal.SIGTERM  # the grace is 30 s
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await until(call, "completed")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
