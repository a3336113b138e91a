"""The ledger goes away under a running server and comes back: nothing is delivered unrecorded, nothing is restarted."""

import asyncio
import contextlib
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import NONE, generate, opened, refused, until
from tests.e2e.conftest import Serving, killed
from tests.e2e.test_keys import told
from tests.usage.postgres import Postgres
from tests.usage.some import rows
from tests.usage.test_outage import dead, full, hanging, locked, small_disk

__all__ = ["small_disk"]
READY, DOWN = (200, "ready\n"), (503, "ledger down\n")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
SETTINGS = {"KLEINSERVE_INTAKE_WORKERS": "1"}


@contextlib.contextmanager
def limited(process_id: int) -> Iterator[None]:
    """No file of the process can grow, which SQLite sees as a disk that is full."""
    soft, hard = resource.prlimit(process_id, resource.RLIMIT_FSIZE)
    resource.prlimit(process_id, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(process_id, resource.RLIMIT_FSIZE, (soft, hard))


async def ready(server: Serving, said: tuple[int, str]) -> None:
    """Wait until the probe says this; pytest's timeout says that it never does."""
    while server.page("/readyz") != said:  # noqa: ASYNC110 - a probe has nothing to await
        await asyncio.sleep(0.05)


async def health(channel: grpc.aio.Channel, status: int) -> None:
    """Wait until health checks are told this."""
    async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
        if answer.status == status:
            return


def asked(tag: str, steps: int = 1, key: str = "") -> image_pb2.GenerateRequest:
    return generate(3, (128, 128), steps, client_tag=tag, idempotency_key=key, preview=NONE)


async def check_outage(server: Serving, url: str, outage: "contextlib.AbstractContextManager[None]") -> None:
    """What runs ends with LEDGER_UNAVAILABLE and is not billed, what comes is refused with it; probes and health say
    so; all is well when the database is, and what ended meanwhile has its record.
    """
    before, plain, keyed, left, late, after = (str(uuid.uuid4()) for _ in range(6))
    async with opened(server.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        await told(stub.Generate(asked(before)))
        running = [stub.Generate(asked(plain, 12)), stub.Generate(asked(keyed, 12, key=keyed))]
        for call in running:
            await until(call, "started")
        leaving = stub.Generate(asked(left, 50))
        await until(leaving, "accepted")
        with outage:
            leaving.cancel()
            for call in running:
                code, reason, details = await refused(call)
                assert (code, reason) == UNAVAILABLE
                assert "RetryInfo" in details
            await ready(server, DOWN)
            await health(channel, NOT_SERVING)
            assert server.page("/healthz")[0] == 200
            assert server.counted("klein_ledger_up") == 0
            code, reason, details = await refused(stub.Generate(asked(late)))
            assert (code, reason) == UNAVAILABLE
            assert "RetryInfo" in details
        await ready(server, READY)
        await health(channel, SERVING)
        await told(stub.Generate(asked(after)))
        again = await told(stub.Generate(asked(keyed, 12, key=keyed)))
        assert again.data
    recorded = rows(url, "SELECT client_tag, outcome, reason, billable FROM record ORDER BY position")
    failed, delivered = ("failed", "LEDGER_UNAVAILABLE", False), ("delivered", "", True)
    ended = {tag: [tuple(rest) for other, *rest in recorded if other == tag] for tag in (before, plain, keyed, left)}
    assert ended == {
        before: [delivered],
        plain: [failed],
        keyed: [failed, delivered],
        left: [("cancelled", "CANCELLED", False)],
    }
    assert [outcome for tag, outcome, *_ in recorded if tag in (late, after) and outcome != "refused"] == ["delivered"]


async def test_sqlite(small_disk: Path | None, tmp_path: Path) -> None:
    """A file that another program locks, and one that cannot grow, which SQLite sees as a full disk; then, for whom may
    mount a small one (root), a disk that is full.
    """
    file = (small_disk or tmp_path) / "usage.db"
    url = f"sqlite:///{file}"
    with killed("--ledger", url, **SETTINGS) as server:
        await check_outage(server, url, locked(file))
        await check_outage(server, url, limited(server.process.pid))
        if small_disk:
            await check_outage(server, url, full(small_disk))


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


async def test_postgresql(postgres: Postgres) -> None:
    """A server that hangs, and one that is killed and started again."""
    url = postgres.database()
    with killed("--ledger", url, **SETTINGS) as server:
        await check_outage(server, url, hanging(postgres))
        await check_outage(server, url, dead(postgres))
