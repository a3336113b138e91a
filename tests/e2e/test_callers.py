"""Who calls, through a real server with TLS and a real client (credentials.py, rpc/server.py, desk/quota.py)."""

import asyncio
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import kleinclient
import pytest
import trustme
from klein.v1 import image_pb2, image_pb2_grpc
from kleinclient import AsyncClient

from tests.e2e.calls import NONE, generate, opened, until
from tests.e2e.collector import began, collecting, ended, values
from tests.e2e.conftest import ENDLESS, Serving, served
from tests.identity.pki import DAY, DNS, LOCAL, URI, Leaf, leaf, pem

TOKENS = {name: f"token-of-{name}" for name in ("web", "batch", "admin", "small")}
PERIOD = (datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1))


def callers_file(tokens: dict[str, str] | None = None) -> str:
    """A callers file: an admin, one with limits, one with certificates."""
    more = {
        "admin": "admin = true",
        "small": "requests_max = 2\nmegapixels_per_minute = 1",
        "web": 'certificates = ["URI:spiffe://prod/web", "DNS:web.internal"]',
    }
    blocks = []
    for name, token in (tokens or TOKENS).items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        blocks.append(f'[callers.{name}]\ntoken_sha256 = ["{digest}"]\n{more.get(name, "")}\n')
    return "\n".join(blocks)


@dataclass(frozen=True)
class Secured:
    """A server with callers and TLS, its authority and its files."""

    server: Serving
    authority: trustme.CA
    folder: Path

    def client(self, token: str = "", certificate: Leaf | None = None, **settings: object) -> AsyncClient:
        own = {} if certificate is None else {"tls_certificate": certificate.chain, "tls_key": certificate.key}
        retry = kleinclient.Retry(attempts=1)
        return AsyncClient(
            self.server.target, token=token or None, tls_ca=pem(self.authority), retry=retry, **own, **settings
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, authority = tmp_path_factory.mktemp("callers"), trustme.CA()
    chain, key = leaf(authority, *LOCAL).write(folder)
    (folder / "callers.toml").write_text(callers_file())
    flags = ("--callers", str(folder / "callers.toml"), "--tls-certificate", str(chain), "--tls-key", str(key))
    settings = {"KLEINSERVE_STEP_TOKENS_MAX": "1", "KLEINSERVE_MAX_STEPS": str(ENDLESS)}
    with served(*flags, "--ledger", f"sqlite:///{folder}/usage.db", **settings) as server:
        yield Secured(server, authority, folder)


@pytest.mark.parametrize("token", ["", "another", TOKENS["web"] + "x"])
async def test_without_a_known_token(secured: Secured, token: str) -> None:
    """None, an unknown one and one with something behind it are refused, for images, usage and capabilities alike."""
    async with secured.client(token) as klein:
        for ask in (klein.generate("a star"), klein.capabilities(), klein.usage(*PERIOD)):
            with pytest.raises(kleinclient.Unauthenticated) as caught:
                await ask
            assert token == "" or token not in str(caught.value)


async def test_the_scheme_is_bearer(secured: Secured) -> None:
    """In any case; another scheme is no token."""
    async with secured.client(metadata=[("authorization", f"bEARER {TOKENS['web']}")]) as klein:
        await klein.capabilities()
    async with secured.client(metadata=[("authorization", f"Basic {TOKENS['web']}")]) as klein:
        with pytest.raises(kleinclient.Unauthenticated):
            await klein.capabilities()


async def test_plain_text_on_the_tls_port(secured: Secured) -> None:
    """A client without TLS gets no answer of ours."""
    async with grpc.aio.insecure_channel(secured.server.target, [("grpc.enable_http_proxy", 0)]) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).GetCapabilities(image_pb2.GetCapabilitiesRequest())
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_sees_its_own_usage(secured: Secured) -> None:
    """Another's is PERMISSION_DENIED; an admin sees everyone's; metrics and records carry the caller's name."""
    async with secured.client(TOKENS["batch"]) as klein, secured.client(TOKENS["admin"]) as admin:
        await klein.generate("a star", size=(64, 64))
        with pytest.raises(kleinclient.PermissionDenied):
            await klein.usage(*PERIOD, caller="web")
        assert {total.caller for total in await klein.usage(*PERIOD)} == {"batch"}
        assert "batch" in {total.caller for total in await admin.usage(*PERIOD)}
        records = [record async for record in admin.usage_records(*PERIOD, caller="batch")]
        assert {record.caller for record in records} == {"batch"}
    assert secured.server.counted('klein_cost_microusd_total{caller="batch",operation="generate"}') >= 14_000


async def test_anothers_key_looks_unknown(secured: Secured) -> None:
    """Two callers may use one key; neither attaches to, cancels or learns of the other's."""
    async with secured.client(TOKENS["web"]) as web, secured.client(TOKENS["batch"]) as batch:
        mine = await web.generate("a star", size=(64, 64), seed=1, idempotency_key="one")
        with pytest.raises(kleinclient.UnknownKey):
            await batch.attach("one")
        with pytest.raises(kleinclient.UnknownKey):
            await batch.cancel("one")
        theirs = await batch.generate("a circle", size=(64, 64), seed=2, idempotency_key="one")
        assert (theirs.is_replay, (await web.attach("one")).data) == (False, mine.data)


async def test_limits_to_the_megapixel(secured: Secured) -> None:
    """One a minute: what was refused has cost nothing, two never fit, and the second one is told when it fits."""
    async with secured.client(TOKENS["small"]) as klein:
        with pytest.raises(kleinclient.ReferenceUnreadable):
            await klein.edit("a star", [b"no picture"], size=(64, 64))
        with pytest.raises(kleinclient.QuotaExceeded, match="2 megapixels never fit") as never:
            await klein.generate("a star", size=(1024, 1040), steps=1)
        began = time.monotonic()
        await klein.generate("a star", size=(64, 64), steps=1)
        with pytest.raises(kleinclient.QuotaExceeded, match="megapixels_per_minute = 1") as full:
            await klein.generate("a star", size=(64, 64), steps=1)
        passed = time.monotonic() - began
    assert never.value.retry_after == 3600
    assert 60 - passed <= full.value.retry_after <= 60
    labels = '{caller="small",limit="megapixels_per_minute"}'
    assert secured.server.counted(f"klein_quota_refused_total{labels}") == 2


async def test_one_request_does_not_wait_for_two_hundred(tmp_path: Path) -> None:
    """Beside a caller with two hundred requests, another's first step begins after at most one more of theirs.

    It is not the shortest, and none is overdue: it is its caller's turn. The server's traces say when steps began.
    """
    (tmp_path / "callers.toml").write_text(callers_file())
    settings = {"KLEINSERVE_STEP_TOKENS_MAX": "1", "KLEINSERVE_MAX_STEPS": str(ENDLESS)}
    with collecting(tmp_path) as collector:
        settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.target
        with served("--callers", str(tmp_path / "callers.toml"), **settings) as server:
            async with opened(server.target) as channel, asyncio.timeout(120):
                stub = image_pb2_grpc.ImageServiceStub(channel)
                many, one = ([("authorization", f"Bearer {TOKENS[name]}")] for name in ("batch", "web"))
                large = [generate(seed, (256, 256), 200, preview=NONE) for seed in range(200)]
                calls = [stub.Generate(request, metadata=many) for request in large]
                for call in calls:
                    await until(call, "accepted")
                single = stub.Generate(generate(200, steps=ENDLESS, preview=NONE), metadata=one)
                await until(single, "progress")
    (mine,) = [whole for whole in collector.wholes if values(whole)["klein.caller"] == "web"]
    others = [collector.children(whole) for whole in collector.wholes if whole is not mine]
    assert len(others) == 200
    assert sum(any(child["name"] == "step" for child in children) for children in others) < 20
    first_step = next(child for child in collector.children(mine) if child["name"] == "step")
    ready = max(ended(child) for child in collector.children(mine) if child["name"] in ("text", "references"))
    steps = [began(child) for children in others for child in children if child["name"] == "step"]
    assert sum(ready <= step < began(first_step) for step in steps) <= 1


async def test_rotation_under_load(secured: Secured) -> None:
    """New tokens and certificates count at once on SIGHUP, a bad file changes nothing, and no stream is lost.

    One of the streams cannot end before the files have changed: it is still drawn afterwards.
    """

    def counted(what: str, outcome: str) -> float:
        text = f'klein_reloads_total{{outcome="{outcome}",what="{what}"}}'
        return secured.server.counted(text)

    async def changed(what: str, outcome: str, before: float) -> None:
        secured.server.process.send_signal(signal.SIGHUP)
        await _until(lambda: counted(what, outcome) != before)

    async with secured.client(TOKENS["web"]) as klein:
        seen: list[int] = []
        endless = asyncio.create_task(_watch(klein, seen))
        await _until(lambda: seen)
        begun = [asyncio.Event() for _ in range(4)]
        running = [asyncio.create_task(_image(klein, seed, event)) for seed, event in enumerate(begun)]
        for event in begun:
            await event.wait()
        before = counted("callers", "ok")
        (secured.folder / "callers.toml").write_text(callers_file(TOKENS | {"web": "a-new-token"}))
        await changed("callers", "ok", before)
        async with secured.client("a-new-token") as renewed:
            await renewed.capabilities()
        with pytest.raises(kleinclient.Unauthenticated):
            await klein.capabilities()
        before = counted("callers", "refused")
        (secured.folder / "callers.toml").write_text("[callers.web]\ntoken_sha256 = [\n")
        await changed("callers", "refused", before)
        async with secured.client("a-new-token") as renewed:
            await renewed.capabilities()
        before = counted("certificates", "ok")
        leaf(secured.authority, *LOCAL).write(secured.folder)
        await changed("certificates", "ok", before)
        async with secured.client("a-new-token") as renewed:
            await renewed.capabilities()
        assert all(image.data for image in await asyncio.gather(*running))
        before_now = len(seen)
        await _until(lambda: len(seen) > before_now + 1 or endless.done())
        assert not endless.done()
        endless.cancel()
    before = counted("callers", "ok")
    (secured.folder / "callers.toml").write_text(callers_file())
    await changed("callers", "ok", before)


async def _watch(klein: AsyncClient, seen: list[int]) -> None:
    """Draw without an end; `seen` gets each step whose preview came."""
    async for preview in klein.generate("a star", size=(64, 64), steps=ENDLESS).previews():
        seen.append(preview.step)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _image(klein: AsyncClient, seed: int, begun: asyncio.Event) -> kleinclient.Image:
    stream = klein.generate("a star", size=(128, 128), steps=20, seed=seed)
    async for _ in stream.previews():
        begun.set()
    return await stream.result()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server that needs a client certificate of its authority."""
    folder, authority = tmp_path_factory.mktemp("mutual"), trustme.CA()
    chain, key = leaf(authority, *LOCAL).write(folder)
    (folder / "callers.toml").write_text(callers_file())
    (folder / "ca.pem").write_bytes(pem(authority))
    flags = ("--callers", str(folder / "callers.toml"), "--tls-certificate", str(chain), "--tls-key", str(key))
    with served(*flags, "--tls-client-ca", str(folder / "ca.pem")) as server:
        yield Secured(server, authority, folder)


async def test_certificates(mutual: Secured) -> None:
    """A listed name of either kind is who calls; unlisted, imitating, foreign and expired ones are refused."""
    ca = mutual.authority
    for name in (URI("spiffe://prod/web"), DNS("web.internal")):
        async with mutual.client(certificate=leaf(ca, name)) as klein:
            await klein.capabilities()
    for name in (URI("spiffe://prod/other"), DNS("spiffe://prod/web"), URI("DNS:web.internal")):
        async with mutual.client(certificate=leaf(ca, name, common_name="web.internal")) as klein:
            with pytest.raises(kleinclient.Unauthenticated):
                await klein.capabilities()
    listed = DNS("web.internal")
    for refused in (None, leaf(trustme.CA(), listed), leaf(ca, listed, since=-2 * DAY, until=-DAY)):
        async with mutual.client(TOKENS["web"], certificate=refused) as klein:
            with pytest.raises(kleinclient.Unavailable):
                await klein.capabilities()


async def test_a_token_and_a_certificate_of_two_callers(mutual: Secured) -> None:
    """They name different callers, so neither calls; of one caller both are fine."""
    web = leaf(mutual.authority, DNS("web.internal"))
    async with mutual.client(TOKENS["batch"], certificate=web) as klein:
        with pytest.raises(kleinclient.Unauthenticated):
            await klein.capabilities()
    async with mutual.client(TOKENS["web"], certificate=web) as klein:
        await klein.capabilities()


def test_others_reach_only_what_is_secured() -> None:
    """A host that is not loopback, without callers and TLS, is refused in one line that names --insecure."""
    command = [sys.executable, "-m", "kleinserve", "serve", "--host", "0.0.0.0", "--port", "0", "--metrics-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "insecure" in ended.stderr
