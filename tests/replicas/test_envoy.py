"""Envoy before two servers, by the configuration that `kleinserve envoy-config` prints (web/envoy.py)."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2_grpc
from klein.v1 import image_pb2, image_pb2_grpc
from kleinserve.web import envoy as configuration

from tests.e2e.calls import generate, opened, refused, until
from tests.replicas.cluster import Server, configured, envoy
from tests.replicas.conftest import MAX_STEPS

Stub = image_pb2_grpc.ImageServiceStub
ORIGIN = "https://page.example"
CANCELS = 10
MIB = 1024 * 1024


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """Chain and key as files, and the authority."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    return chain, key, authority.cert_pem.bytes()


def test_valid(tmp_path: Path, certificate: tuple[Path, Path, bytes]) -> None:
    """Envoy accepts what is printed for names and addresses of both versions, with and without TLS and origins."""
    replicas = ["--replica=127.0.0.1:50051", "--replica=[::1]:50051", "--replica=klein.example:50051"]
    tls = [f"--tls-certificate={certificate[0]}", f"--tls-key={certificate[1]}"]
    for index, more in enumerate(([], ["--port=443", *tls], [f"--web-origins={ORIGIN}"])):
        file = tmp_path / f"{index}.yaml"
        file.write_text(configured(*replicas, *more))
        command = [str(Path(sys.executable).with_name("envoy")), "--mode", "validate", "-c", str(file)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("replica", ["50051", "host", "host:0", "host:port", "[::1]", "a b:1", "http://host:1"])
def test_bad_replica(replica: str) -> None:
    """What is no HOST:PORT is one line with exit code 2."""
    command = [sys.executable, "-m", "kleinserve", "envoy-config", f"--replica={replica}"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.count("\n") == 1
    assert "--replica" in told.stderr


def test_never_gives_up_on_health() -> None:
    """Where no server is healthy none is asked, and no stream has a time limit of Envoy's."""
    told = configuration.configuration([("host", 1)], 50050)["static_resources"]
    for cluster in told["clusters"]:
        assert cluster["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}}
    assert "max_stream_duration" not in json.dumps(told)
    (manager,) = (chain["filters"][0]["typed_config"] for chain in told["listeners"][0]["filter_chains"])
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert [route["route"]["timeout"] for route in routes] == ["0s", "0s"]


@asynccontextmanager
async def answering(code: grpc.StatusCode, seen: list[int]) -> AsyncIterator[SimpleNamespace]:
    """A healthy server whose edits all end so; `seen` gets the size of each one's request."""

    async def edit(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        seen.append(len(data))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, "as it was told to")
        return b""

    server, stands = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)]), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(stands, server)
    methods = {"Edit": grpc.unary_unary_rpc_method_handler(edit)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("klein.v1.ImageService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield SimpleNamespace(target=f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


@pytest.mark.parametrize("length", [100, 2 * MIB, 44 * MIB])
async def test_another_server_is_tried(length: int) -> None:
    """What one server refuses before its first event the other gets, up to the longest request that a server takes."""
    refusing: list[int] = []
    taking: list[int] = []
    async with (
        answering(grpc.StatusCode.UNAVAILABLE, refusing) as one,
        answering(grpc.StatusCode.OK, taking) as other,
        AsyncExitStack() as stack,
    ):
        before = envoy(one, other)
        made = await asyncio.to_thread(before.__enter__)
        stack.push(before.__exit__)
        channel = await stack.enter_async_context(opened(made.target))
        calls = 0
        while not refusing:  # it begins with either
            await channel.unary_unary("/klein.v1.ImageService/Edit")(bytes(length), timeout=60)
            calls += 1
    assert set(refusing) == set(taking) == {length}
    assert len(taking) == calls


async def test_details_pass(front: str) -> None:
    """A refusal behind Envoy has all its details."""
    async with opened(front) as channel:
        bad = generate(size=(100, 64))
        code, reason, details = await refused(Stub(channel).Generate(bad))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    violations = details["BadRequest"]
    assert isinstance(violations, error_details_pb2.BadRequest)
    assert [each.field for each in violations.field_violations] == ["options.width"]


async def test_cancels_pass(pair: tuple[Server, Server], front: str) -> None:
    """Every cancel arrives at the server that draws."""
    before = sum(server.counted("klein_cancelled_total") for server in pair)
    async with opened(front) as channel:
        for _ in range(CANCELS):
            running = Stub(channel).Generate(generate(steps=MAX_STEPS))
            await until(running, "progress")
            running.cancel()
        async with asyncio.timeout(60):
            while sum(server.counted("klein_cancelled_total") for server in pair) < before + CANCELS:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert sum(server.counted("klein_running_requests") for server in pair) == 0


def test_a_page_calls(pair: tuple[Server, Server]) -> None:
    """A listed page's script gets through: its preflight is allowed, and gRPC-Web over HTTP/1.1 is answered."""
    with envoy(*pair, arguments=(f"--web-origins={ORIGIN}",)) as made:
        url = f"http://{made.target}/klein.v1.ImageService/GetCapabilities"
        asking = {"access-control-request-method": "POST", "access-control-request-headers": "x-grpc-web"}
        preflight = _asked(url, "OPTIONS", {"origin": ORIGIN, **asking})
        assert preflight["access-control-allow-origin"] == ORIGIN
        stranger = _asked(url, "OPTIONS", {"origin": "https://other.example", **asking})
        assert "access-control-allow-origin" not in stranger
        answer = _asked(url, "POST", {"origin": ORIGIN, "content-type": "application/grpc-web+proto"}, bytes(5))
        assert answer["content-type"].startswith("application/grpc-web")
        assert "grpc-status-details-bin" in answer["access-control-expose-headers"]


def _asked(url: str, method: str, headers: dict[str, str], body: bytes | None = None) -> dict[str, str]:
    """The answer's headers, by lower-case name."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with opener.open(request, timeout=20) as response:
            return {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        return {name.lower(): value for name, value in error.headers.items()}


async def test_tls_outside(pair: tuple[Server, Server], certificate: tuple[Path, Path, bytes]) -> None:
    """With a certificate Envoy speaks TLS and HTTP/2 to callers."""
    chain, key, authority = certificate
    tls = (f"--tls-certificate={chain}", f"--tls-key={key}")
    with envoy(*pair, arguments=tls) as made:
        credentials = grpc.ssl_channel_credentials(authority)
        options = [("grpc.enable_http_proxy", 0)]
        async with grpc.aio.secure_channel(made.target, credentials, options) as channel:
            ask = Stub(channel).GetCapabilities
            told = await ask(image_pb2.GetCapabilitiesRequest(), wait_for_ready=True, timeout=60)
    assert told.model
