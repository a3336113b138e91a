"""A server's life at its two ends: what callers and probes see while it warms up, and when the accelerator is lost."""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import edit, generate, opened, png, refused, until
from tests.e2e.conftest import Serving, announced, launched
from tests.e2e.faults import DIES, SECRET


@dataclass(frozen=True)
class Warming:
    """A server whose warm-up waits for a file; `serving` works before it does."""

    serving: Serving
    file: Path


@pytest.fixture(scope="module")
def warming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warming]:
    file = tmp_path_factory.mktemp("warming") / "warm"
    port, metrics = _free_port(), _free_port()
    ports = ["--port", str(port), "--metrics-port", str(metrics)]
    with launched(*ports, module="tests.e2e.faults", FAULTS_WARM_UP_FILE=str(file)) as process:
        yield Warming(Serving(f"127.0.0.1:{port}", f"127.0.0.1:{metrics}", process), file)


def is_alive(server: Serving) -> bool:
    with suppress(URLError):
        return server.page("/healthz") == (200, "starting\n")
    return False


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def test_not_ready_until_warm(warming: Warming) -> None:
    """While it warms up a server is bound, alive, not ready, and refuses with NOT_READY; then it announces itself."""
    server = warming.serving
    async with opened(server.target) as channel:
        async with asyncio.timeout(120):
            await channel.channel_ready()
        stub = image_pb2_grpc.ImageServiceStub(channel)
        for call in (stub.Generate(generate()), stub.Edit(edit([png()])), stub.Edit(edit([b"no image"]))):
            code, reason, details = await refused(call)
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
            assert set(details) == {"ErrorInfo", "RetryInfo"}
            assert int(dict(await call.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.page("/healthz") == (200, "starting\n")
        assert server.page("/readyz") == (503, "starting\n")
        warming.file.touch()
        assert await asyncio.to_thread(announced, server.process) == server
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert server.page("/readyz") == (200, "ready\n")
        await until(stub.Generate(generate()), "completed")
    assert server.counted('klein_requests_total{code="UNAVAILABLE",operation="edit",reason="NOT_READY"}') == 2
    await server.counts("klein_request_duration_seconds_count", 4)  # the warm-up is not counted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_it_is_warm_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Nobody's request is lost yet, and a warm-up may take minutes."""
    metrics = _free_port()
    ports = ["--port", "0", "--metrics-port", str(metrics)]
    with launched(*ports, module="tests.e2e.faults", FAULTS_WARM_UP_FILE=str(tmp_path / "never")) as process:
        server = Serving("", f"127.0.0.1:{metrics}", process)
        while not is_alive(server):
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(5) == 128 + number


async def test_lost_accelerator(warming: Warming) -> None:
    """When the accelerator is lost every request ends with INTERNAL, and the process with exit code 1."""
    warming.file.touch()
    server = warming.serving
    async with opened(server.target) as channel:
        async with asyncio.timeout(120):
            await channel.channel_ready()
        stub = image_pb2_grpc.ImageServiceStub(channel)
        beside = stub.Generate(generate(0, (256, 256), 50))
        await until(beside, "progress")
        request = generate()
        request.prompt = DIES
        for call in (stub.Generate(request), beside):
            code, reason, details = await refused(call)
            assert (code, reason, set(details)) == (grpc.StatusCode.INTERNAL, "INTERNAL", {"ErrorInfo"})
            assert SECRET not in str(details) + (await call.details() or "")
    assert await asyncio.to_thread(server.process.wait, 60) == 1
