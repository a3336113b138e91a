"""One caller floods the shelf and the memory of keys: bounds hold, and others lose nothing."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import NONE, generate, opened
from tests.e2e.conftest import Serving, killed
from tests.e2e.test_keys import told
from tests.usage.some import rows

KEPT_BYTES, KEYS_MAX = 4_000_000, 60  # an eighth a caller: room for three that are drawn, or thirty images of 64²
RESULTS, KEYS = 40, 100
RAW = image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")
RAW_BYTES = 64 * 64 * 4


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Serving, str]]:
    callers = [f'[callers.{name}]\ntoken_sha256 = ["{hashlib.sha256(name.encode()).hexdigest()}"]' for name in NAMES]
    (tmp_path / "callers.toml").write_text("\n".join(callers))
    url = f"sqlite:///{tmp_path}/usage.db"
    settings = {"KEPT_BYTES_MAX": str(KEPT_BYTES), "KEYS_MAX": str(KEYS_MAX), "INTAKE_WORKERS": "1"}
    environment = {f"KLEINSERVE_{name}": value for name, value in settings.items()}
    with killed("--callers", str(tmp_path / "callers.toml"), "--ledger", url, **environment) as serving:
        yield serving, url


NAMES = ("victim", "attacker")


def detached(key: str) -> image_pb2.GenerateRequest:
    return generate(1, (64, 64), 1, idempotency_key=key, output=RAW, preview=NONE, on_disconnect="ON_DISCONNECT_DETACH")


async def test_a_flood_of_results_and_keys(server: tuple[Serving, str]) -> None:
    """The attacker keeps an eighth at most, and loses his own keys; the victim's image and key, never fetched, stay."""
    serving, url = server
    victim, attacker = ([("authorization", f"Bearer {name}")] for name in NAMES)
    async with opened(serving.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        mine = stub.Generate(detached("mine"), metadata=victim)
        while not (await mine.read()).HasField("accepted"):
            pass
        mine.cancel()
        await serving.counts("klein_kept_results", 1)
        refusals = 0

        async def attack(number: int) -> None:
            """Leaves what it asked for; whatever is delivered makes room for the next."""
            nonlocal refusals
            call = stub.Generate(detached(f"result {number}"), metadata=attacker)
            try:
                await told(call) if number % 2 else await left(call)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                refusals += 1

        most = 0.0
        for first in range(0, RESULTS, 8):
            await asyncio.gather(*(attack(number) for number in range(first, first + 8)))
            most = max(most, serving.counted("klein_kept_bytes"))
        assert refusals, "the attacker's share of the shelf was never full"
        assert RAW_BYTES < most <= KEPT_BYTES // 8 + RAW_BYTES
        for first in range(0, KEYS, 10):
            requests = [
                generate(1, (64, 64), 1, idempotency_key=f"key {i}", preview=NONE) for i in range(first, first + 10)
            ]
            await asyncio.gather(*(told(stub.Generate(request, metadata=attacker)) for request in requests))
        assert rows(url, "SELECT count(*) FROM job")[0][0] <= KEYS_MAX
        fetched = await told(stub.Attach(image_pb2.AttachRequest(idempotency_key="mine"), metadata=victim))
        assert len(fetched.data) == RAW_BYTES
        assert rows(url, "SELECT count(*) FROM record WHERE caller = 'victim' AND billable") == [(1,)]


async def left(call: "grpc.aio.UnaryStreamCall") -> None:
    """Go away as soon as it is accepted."""
    await call.read()
    call.cancel()
