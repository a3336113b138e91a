"""Two servers' gRPC ports in this process, with TLS and a callers file: who may pass calls on, and what arrives."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from klein.v1 import image_pb2, image_pb2_grpc
from kleinserve.config import Config
from kleinserve.errors import KeyElsewhere, QuotaExceeded
from kleinserve.identity.callers import WatchedCallers, token_digest, watch_callers
from kleinserve.identity.certificates import CertificateFiles, Certificates, watch_certificates
from kleinserve.identity.reload import Watched
from kleinserve.metrics import Metrics
from kleinserve.rpc.call import FORWARDED_CALLER, Call, Method
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.forward import Forward, channel_credentials
from kleinserve.rpc.server import GrpcServer, tls_credentials

from tests.e2e.calls import generate, refused

GENERATE = "/klein.v1.ImageService/Generate"
Stub = image_pb2_grpc.ImageServiceStub


class Ports:
    """The files of two servers, of which `owner` answers and the other passes on. `seen`: the owner's calls."""

    def __init__(self, folder: Path, names: Sequence[str]):
        (folder / "token").write_text("replica")
        hashes = {name: token_digest(name) for name in ("web", "replica")}
        self.callers = folder / "callers.toml"
        self.callers.write_text(
            f'[callers.web]\ntoken_sha256 = ["{hashes["web"]}"]\nmegapixels_per_minute = 3\n'
            f'[replicas]\ntoken_sha256 = ["{hashes["replica"]}"]\ntoken_file = "token"\n'
        )
        authority = trustme.CA()
        self.ca = authority.cert_pem.bytes()
        self.certificates, self.owners = (self._certificates(folder, authority, name) for name in (names[0], names[-1]))
        self.seen: list[Call] = []
        self.owner: Any = None

    @staticmethod
    def _certificates(folder: Path, authority: trustme.CA, names: str) -> Watched[Certificates]:
        issued = authority.issue_cert(*names.split())
        files = CertificateFiles(folder / f"{names}.pem", folder / f"{names}.key", None)
        issued.cert_chain_pems[0].write_to_path(files.chain)
        issued.private_key_pem.write_to_path(files.key)
        return watch_certificates(files)

    def serve(self, behaviour: Any, certificates: Watched[Certificates]) -> tuple[GrpcServer, Metrics]:
        config, metrics = Config(port=0, metrics_port=0), Metrics()
        methods = {GENERATE: Method(image_pb2.GenerateRequest, True, behaviour, "generate")}
        nothing: Any = SimpleNamespace(refuse=lambda *refused: None)
        calls = Calls(methods, self.authenticator(), nothing, nothing, config, metrics)
        return GrpcServer(calls, config, tls_credentials(certificates)), metrics

    def authenticator(self) -> WatchedCallers:
        return WatchedCallers(watch_callers(self.callers))

    @asynccontextmanager
    async def channel(self, port: int) -> AsyncIterator[Stub]:
        credentials = grpc.ssl_channel_credentials(self.ca)
        options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
        if self.certificates.value.name:
            options.append(("grpc.ssl_target_name_override", self.certificates.value.name))
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            yield Stub(channel)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def passing(
    folder: Path, answer: Any, names: Sequence[str] = ("localhost 127.0.0.1",)
) -> AsyncIterator[tuple[Ports, int, int, Metrics]]:
    """Both, the owner's port and the other's, and the other's metrics. `answer(call)` is the owner's.

    `names`: of the other's certificate, and of the owner's where that is another one.
    """
    ports = Ports(folder, names)

    async def own(message: Any, call: Call) -> None:
        ports.seen.append(call)
        await call.begin()
        await answer(call)

    async def pass_on(message: Any, call: Call) -> None:
        async def here() -> None:
            raise KeyElsewhere(f"127.0.0.1:{owner_port}")

        await forward.unless_elsewhere(message, call, here)

    forward = Forward(
        ports.authenticator(), lambda: channel_credentials(ports.certificates.value, ports.ca), patience_seconds=1.0
    )
    owner, _ = ports.serve(own, ports.owners)
    other, metrics = ports.serve(pass_on, ports.certificates)
    ports.owner = owner
    owner_port, other_port = await owner.start(), await other.start()
    try:
        yield ports, owner_port, other_port, metrics
    finally:
        await asyncio.gather(owner.stop(0.1), other.stop(0.1))


def finished(metrics: Metrics) -> float:
    """What klein_requests_total counts."""
    lines = metrics.exposition().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("klein_requests_total{"))


async def test_for_whom(tmp_path: Path) -> None:
    """Over TLS the owner learns the caller, its deadline, key and trace, and no token but the replicas'."""

    async def answer(call: Call) -> None:
        await call.write(image_pb2.ImageEvent(request_id="job", sequence=0))

    async with passing(tmp_path, answer) as (ports, _, port, metrics), ports.channel(port) as stub:
        sent = (*bearer("web"), ("klein-idempotency-key", "k"), ("traceparent", "t"), ("cookie", "c"))
        call = stub.Generate(generate(idempotency_key="k"), timeout=30, metadata=sent)
        assert [event.request_id async for event in call] == ["job"]
        (seen,) = ports.seen
        assert dict(await call.initial_metadata())["klein-request-id"] == seen.request_id
    given = seen.transport.metadata
    assert seen.known.name == given[FORWARDED_CALLER] == "web"
    assert (given["authorization"], given["klein-idempotency-key"], given["traceparent"]) == (
        "Bearer replica",
        "k",
        "t",
    )
    assert "cookie" not in given
    assert seen.deadline is not None
    assert finished(metrics) == 0


@pytest.mark.parametrize(
    ("names", "is_trusted"),
    [(("klein.internal",), True), (("*.klein.svc",), True), (("klein.internal", "other.internal"), False)],
)
async def test_no_certificate_names_addresses(tmp_path: Path, names: Sequence[str], is_trusted: bool) -> None:
    """An owner at an address is trusted where its certificate has this server's own name, and no other one is asked."""

    async def answer(call: Call) -> None:
        await call.write(image_pb2.ImageEvent(sequence=0))

    async with passing(tmp_path, answer, names) as (ports, _, port, _metrics), ports.channel(port) as stub:
        call = stub.Generate(generate(), metadata=bearer("web"))
        if is_trusted:
            assert [event.sequence async for event in call] == [0]
        else:
            assert (await refused(call))[:2] == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    assert len(ports.seen) == is_trusted


async def test_refusals_pass_whole(tmp_path: Path) -> None:
    """The owner's refusal arrives with its status, reason, delay and quota, under the owner's request id."""

    async def answer(call: Call) -> None:
        raise QuotaExceeded("web", "megapixels_per_minute", 3, 7.0)

    async with passing(tmp_path, answer) as (ports, _, port, metrics), ports.channel(port) as stub:
        code, reason, details = await refused(stub.Generate(generate(), metadata=bearer("web")))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        assert details["RetryInfo"].retry_delay.seconds == 7  # type: ignore[attr-defined]
        assert details["ErrorInfo"].metadata["request_id"] == ports.seen[0].request_id  # type: ignore[attr-defined]
    assert finished(metrics) == 0


async def test_a_cancel_passes(tmp_path: Path) -> None:
    """A reader that leaves the one server leaves the other."""
    began, left = asyncio.Event(), asyncio.Event()

    async def answer(call: Call) -> None:
        await call.write(image_pb2.ImageEvent(sequence=0))
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with passing(tmp_path, answer) as (ports, _, port, _metrics), ports.channel(port) as stub:
        call = stub.Generate(generate(), metadata=bearer("web"))
        await call.read()
        await began.wait()
        call.cancel()
        async with asyncio.timeout(30):
            await left.wait()


@pytest.mark.parametrize(
    ("token", "name", "code"),
    [
        ("web", "web", grpc.StatusCode.PERMISSION_DENIED),
        ("nobody", "web", grpc.StatusCode.UNAUTHENTICATED),
        ("replica", "else", grpc.StatusCode.UNAUTHENTICATED),
        ("replica", None, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
async def test_replicas_alone(tmp_path: Path, token: str, name: str | None, code: grpc.StatusCode) -> None:
    """Nobody but a replica calls for another, for none that is unknown, and a replica never for itself."""

    async def answer(call: Call) -> None:
        raise AssertionError

    async with passing(tmp_path, answer) as (ports, port, _, _metrics), ports.channel(port) as stub:
        metadata = bearer(token) if name is None else (*bearer(token), (FORWARDED_CALLER, name))
        assert (await refused(stub.Generate(generate(), metadata=metadata)))[0] is code
    assert not ports.seen


@pytest.mark.parametrize(
    ("seconds", "code"), [(None, grpc.StatusCode.UNAVAILABLE), (0.8, grpc.StatusCode.DEADLINE_EXCEEDED)]
)
async def test_an_owner_that_is_gone(tmp_path: Path, seconds: float | None, code: grpc.StatusCode) -> None:
    """Where nobody answers the key is tried for a while, and not past the deadline; then this server counts the end."""

    async def answer(call: Call) -> None:
        raise AssertionError

    async with passing(tmp_path, answer) as (ports, _, port, metrics), ports.channel(port) as stub:
        await ports.owner.stop(None)
        call = stub.Generate(generate(), metadata=bearer("web"), timeout=seconds)
        if seconds is None:
            assert (await refused(call))[:2] == (code, "LEDGER_UNAVAILABLE")
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is code
    assert finished(metrics) == 1
