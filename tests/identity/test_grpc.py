"""Identity through real grpc.aio servers and clients: who gets in, who does not, and what a rotation disturbs."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc.experimental import session_cache
from kleinserve.identity.certificates import CertificateFiles

from tests.identity.pki import DAY, DNS, LOCAL, URI, Leaf, imitation, leaf, pem
from tests.identity.serving import Serving, serving

CALLERS = """
[callers.web]
token_sha256 = ["{web}"]
certificates = ["URI:spiffe://prod/web", "DNS:web.internal"]
[callers.ops]
token_sha256 = ["{ops}"]
certificates = ["URI:spiffe://prod/ops"]
"""
UNAUTHENTICATED, UNAVAILABLE = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE
CA, CLIENTS, FOREIGN = trustme.CA(), trustme.CA(), trustme.CA()
WEB = leaf(CLIENTS, URI("spiffe://prod/web"))
Metadata = tuple[tuple[str, str], ...]


def callers(web: str = "web-token") -> str:
    return CALLERS.format(web=sha256(web.encode()).hexdigest(), ops=sha256(b"ops-token").hexdigest())


def put(file: Path, content: str | bytes) -> None:
    """Exchange the file's content by a rename."""
    new = file.with_suffix(".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(new, file)


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    put(tmp_path / "callers.toml", callers())
    put(tmp_path / "ca.pem", pem(CLIENTS))
    return CertificateFiles(*leaf(CA, *LOCAL).write(tmp_path), tmp_path / "ca.pem")


@pytest.fixture
async def mutual(files: CertificateFiles) -> AsyncIterator[Serving]:
    """A server that asks for client certificates."""
    async with serving(files.chain.parent / "callers.toml", files) as server:
        yield server


@pytest.fixture
async def tls(files: CertificateFiles) -> AsyncIterator[Serving]:
    """A server that does not."""
    async with serving(files.chain.parent / "callers.toml", CertificateFiles(files.chain, files.key)) as server:
        yield server


@asynccontextmanager
async def channel(
    server: Serving, client: Leaf | None = None, trusted: bytes = pem(CA), options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own, shared with no other channel."""
    pair = (client.key, client.chain) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(trusted, *pair)
    own = [("grpc.use_local_subchannel_pool", 1), *options]
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, own) as made:
        yield made


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


async def who(server: Serving, metadata: Metadata = (), client: Leaf | None = None, trusted: bytes = pem(CA)) -> str:
    """The caller's name that the server finds, through a new connection. Raises: grpc.aio.AioRpcError."""
    async with channel(server, client, trusted) as made:
        answer: bytes = await made.unary_unary("/test/Who")(b"", metadata=metadata)
        return answer.decode()


async def refused(call: Any) -> grpc.StatusCode:
    """The status of a call that fails; where the server refused it, what it says of itself is nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    if error.value.code() == UNAUTHENTICATED:
        assert not any(secret in (error.value.details() or "") for secret in ("web", "ops", "spiffe", "Traceback"))
    return error.value.code()


async def test_token(tls: Serving) -> None:
    """A known token gets in over TLS, its scheme in any case."""
    assert await who(tls, bearer("web-token")) == "web"
    assert await who(tls, (("authorization", "bearer ops-token"),)) == "ops"


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ((), "none"),
        (bearer("wrong"), "unknown"),
        (bearer(""), "unknown"),
        ((("authorization", "Basic web-token"),), "unknown"),
        ((("authorization", "web-token"),), "unknown"),
        ((("x-authorization", "Bearer web-token"),), "none"),
        (bearer("web-token") + bearer("web-token"), "conflict"),
        (bearer("web-token") + bearer("ops-token"), "conflict"),
        (bearer(sha256(b"web-token").hexdigest()), "unknown"),
    ],
)
async def test_bad_token(tls: Serving, metadata: Metadata, why: str) -> None:
    """No token, a wrong one, one in the wrong scheme or header, or two: UNAUTHENTICATED."""
    assert await refused(who(tls, metadata)) == UNAUTHENTICATED
    assert tls.whys == [why]


@pytest.mark.parametrize(
    "client",
    [
        WEB,
        leaf(CLIENTS, DNS("else.internal"), DNS("web.internal")),
        leaf(CLIENTS, DNS("web.internal"), common_name="ops"),
    ],
)
async def test_certificate(mutual: Serving, client: Leaf) -> None:
    """A certificate of the CA gets in by any of its URIs and DNS names that is listed, without a token."""
    assert await who(mutual, client=client) == "web"


async def test_certificate_and_token(mutual: Serving) -> None:
    """An unlisted certificate leaves the answer to the token; a listed one may come with its caller's token."""
    assert await who(mutual, bearer("ops-token"), leaf(CLIENTS, DNS("unlisted"))) == "ops"
    assert await who(mutual, bearer("web-token"), WEB) == "web"


@pytest.mark.parametrize(
    ("client", "metadata", "why"),
    [
        (leaf(CLIENTS, DNS("unlisted.internal")), (), "certificate"),
        (leaf(CLIENTS, DNS("spiffe://prod/web")), (), "certificate"),
        (leaf(CLIENTS, URI("web.internal")), (), "certificate"),
        (leaf(CLIENTS, DNS("URI:spiffe://prod/web")), (), "certificate"),
        (leaf(CLIENTS, DNS("web.internal\0.evil.example")), (), "none"),  # grpc cuts it to web.internal
        (leaf(CLIENTS, URI("spiffe://prod/web\0")), (), "none"),
        (leaf(CLIENTS, DNS("*.internal")), (), "certificate"),
        (leaf(CLIENTS, common_name="web.internal"), (), "none"),
        (leaf(CLIENTS, common_name="spiffe://prod/web"), (), "none"),
        (leaf(CLIENTS, DNS("unlisted"), common_name="URI:spiffe://prod/web"), (), "certificate"),
        (leaf(CLIENTS, DNS("unlisted")), bearer("wrong"), "unknown"),
        (WEB, bearer("ops-token"), "conflict"),
        (leaf(CLIENTS, URI("spiffe://prod/web"), URI("spiffe://prod/ops")), (), "conflict"),
    ],
)
async def test_bad_certificate(mutual: Serving, client: Leaf, metadata: Metadata, why: str) -> None:
    """An unlisted name, an imitation of another kind, a common name alone, or two callers at once: UNAUTHENTICATED."""
    assert await refused(who(mutual, metadata, client)) == UNAUTHENTICATED
    assert mutual.whys == [why]


@pytest.mark.parametrize(
    "client",
    [
        None,
        leaf(FOREIGN, URI("spiffe://prod/web")),
        leaf(imitation(CLIENTS), URI("spiffe://prod/web")),
        leaf(CA, URI("spiffe://prod/web")),
        leaf(CLIENTS, URI("spiffe://prod/web"), since=-9 * DAY, until=-DAY),
        leaf(CLIENTS, URI("spiffe://prod/web"), since=DAY),
    ],
    ids=["none", "foreign", "of a CA with our CA's name", "the server's own CA", "expired", "not valid yet"],
)
async def test_no_connection(mutual: Serving, client: Leaf | None) -> None:
    """Without a certificate of the clients' CA that is valid now there is no connection, even with a good token."""
    assert await refused(who(mutual, bearer("web-token"), client)) == UNAVAILABLE
    assert mutual.whys == []


async def test_certificate_where_none_is_asked(tls: Serving) -> None:
    """A server without a CA of clients does not look at certificates, so that none gets in by itself."""
    assert await refused(who(tls, client=WEB)) == UNAUTHENTICATED
    assert tls.whys == ["none"]


async def test_plain_text(tls: Serving) -> None:
    """Plain text on the TLS port reaches no method: not gRPC's, and not the bytes of HTTP."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tls.port}") as made:
        call = made.unary_unary("/test/Who")(b"", metadata=bearer("web-token"))
        assert await refused(call) == UNAVAILABLE
    reader, writer = await asyncio.open_connection("127.0.0.1", tls.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    try:
        answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    writer.close()
    assert b"HTTP" not in answer
    assert tls.whys == []


async def test_callers_rotated(tls: Serving, files: CertificateFiles) -> None:
    """A token that was taken away is refused at the next call of an open connection; open streams go on."""
    file = files.chain.parent / "callers.toml"
    async with channel(tls) as made:
        stream = made.stream_stream("/test/Echo")(metadata=bearer("web-token"))
        assert await stream.read() == b"web"
        put(file, callers("new-token"))
        assert await tls.reload() == "callers ok"
        assert await refused(made.unary_unary("/test/Who")(b"", metadata=bearer("web-token"))) == UNAUTHENTICATED
        assert await made.unary_unary("/test/Who")(b"", metadata=bearer("new-token")) == b"web"
        put(file, "[callers.Bad]")
        assert await tls.reload() == "callers refused"
        assert await made.unary_unary("/test/Who")(b"", metadata=bearer("new-token")) == b"web"
        await stream.write(b"still here")
        assert await stream.read() == b"still here"


async def test_client_ca_rotated(mutual: Serving, files: CertificateFiles) -> None:
    """After a change of the clients' CA the old one's certificates open no connection, not by resuming one either."""
    cache = session_cache.ssl_session_cache_lru(8)  # type: ignore[no-untyped-call]
    options = [("grpc.ssl_session_cache", cache), ("grpc.ssl_target_name_override", "localhost")]

    async def resumed() -> bytes:
        async with channel(mutual, WEB, options=options) as made:
            answer: bytes = await made.unary_unary("/test/Who")(b"")
            return answer

    assert [await resumed() for _ in range(3)] == [b"web"] * 3
    assert mutual.service.resumed[-1]  # so that there is a session to come back with
    assert files.client_ca
    put(files.client_ca, pem(FOREIGN))
    assert await mutual.reload() == "certificates ok"
    assert await refused(resumed()) == UNAVAILABLE
    assert await refused(who(mutual, client=WEB)) == UNAVAILABLE
    assert await who(mutual, client=leaf(FOREIGN, URI("spiffe://prod/web"))) == "web"


async def test_rotated_under_load(mutual: Serving, files: CertificateFiles) -> None:
    """Beside constant calls and open streams, certificates, their authority and tokens change: nothing is lost.

    Bad files in between are refused and change nothing.
    """
    directory, new_ca = files.chain.parent, trustme.CA()
    trusted, is_over, answers = pem(CA) + pem(new_ca), asyncio.Event(), list[str]()

    async def load() -> None:
        while not is_over.is_set():
            answers.append(await who(mutual, client=WEB, trusted=trusted))

    async with channel(mutual, WEB) as made:
        streams = [made.stream_stream("/test/Echo")() for _ in range(4)]
        assert [await stream.read() for stream in streams] == [b"web"] * 4
        loads = [asyncio.create_task(load()) for _ in range(2)]
        for turn in range(10):
            put(files.chain, leaf(FOREIGN, *LOCAL).chain)  # without its key
            assert await mutual.reload() == "certificates refused"
            new = leaf(new_ca, *LOCAL)
            put(files.key, new.key)
            put(files.chain, new.chain)
            assert await mutual.reload() == "certificates ok"
            put(directory / "callers.toml", callers(f"token-{turn}"))
            assert await mutual.reload() == "callers ok"
            for stream in streams:
                await stream.write(b"%d" % turn)
            assert [await stream.read() for stream in streams] == [b"%d" % turn] * 4
        is_over.set()
        await asyncio.gather(*loads)
        for stream in streams:
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() == grpc.StatusCode.OK
    assert len(answers) >= 2
    assert set(answers) == {"web"}
    assert await who(mutual, client=WEB, trusted=pem(new_ca)) == "web"
    assert await refused(who(mutual, client=WEB)) == UNAVAILABLE
    assert mutual.whys == []
