"""Tokens and certificates, each against a server that asks for them; and that secrets are not said."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from klein.v1 import image_pb2 as pb
from kleinclient import AsyncClient, Client, ServerUnreachable, Unauthenticated

from tests.client.conftest import PICTURE, Scripted, refuse, serving, whole

SECRET = "a-token-that-nobody-may-read"
HOST = "localhost"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The authority, and a client's certificate and key, as files."""
    folder = tmp_path_factory.mktemp("pem")
    client = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client.cert_chain_pems[0].write_to_path(str(folder / "certificate.pem"))
    client.private_key_pem.write_to_path(str(folder / "key.pem"))
    return {name: folder / f"{name}.pem" for name in ("ca", "certificate", "key")}


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def secure(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[Scripted]:
    """A server with TLS; the mutual one wants a certificate of the same authority."""
    own = authority.issue_cert(HOST)
    pair = (own.private_key_pem.bytes(), b"".join(pem.bytes() for pem in own.cert_chain_pems))
    roots = authority.cert_pem.bytes() if request.param else None
    scripted = Scripted()
    with serving(scripted, credentials=grpc.ssl_server_credentials([pair], roots, request.param)):
        scripted.target = scripted.target.replace("127.0.0.1", HOST)
        scripted.play(whole)
        yield scripted


def test_certificates(secure: Scripted, caller: Any, files: dict[str, Path]) -> None:
    """With the authority's file, and the client's own where the server wants it, a token goes over TLS."""
    caller.settings |= {"tls_ca": files["ca"], "tls_certificate": files["certificate"], "tls_key": str(files["key"])}
    caller.settings["token"] = SECRET
    assert caller.image(secure.target).data == PICTURE
    assert secure.metadata[0]["authorization"] == f"Bearer {SECRET}"


def test_authority_as_bytes_and_from_the_environment(
    authority: trustme.CA, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority may be bytes, or named by KLEIN_TLS_CA."""
    own = authority.issue_cert(HOST)
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    scripted = Scripted()
    scripted.play(whole)
    with serving(scripted, credentials=grpc.ssl_server_credentials([pair])) as port:
        with Client(f"{HOST}:{port}", tls_ca=files["ca"].read_bytes()) as klein:
            assert klein.generate("x").result().data == PICTURE
        monkeypatch.setenv("KLEIN_TLS_CA", str(files["ca"]))
        monkeypatch.setenv("KLEIN_TOKEN", SECRET)
        monkeypatch.setenv("KLEIN_SERVER", f"{HOST}:{port}")
        with Client() as klein:
            assert klein.generate("x").result().data == PICTURE
    assert ["authorization" in metadata for metadata in scripted.metadata] == [False, True]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "it closed the connection at once; it may want TLS, or a client certificate"),
        ({"tls": True}, "its certificate is not of an authority that is trusted here"),
    ],
)
def test_strangers(secure: Scripted, caller: Any, settings: dict[str, Any], words: str) -> None:
    """Plain text at a TLS port, and a server that nobody vouches for, are said in words and at once."""
    caller.settings |= settings
    with pytest.raises(ServerUnreachable, match=words):
        caller.image(secure.target)


def test_another_name(secure: Scripted, caller: Any, files: dict[str, Path]) -> None:
    """A certificate for another name is not accepted."""
    caller.settings |= {"tls_ca": files["ca"], "tls_certificate": files["certificate"], "tls_key": files["key"]}
    with pytest.raises(ServerUnreachable, match="its certificate is for another name"):
        caller.image(secure.target.replace(HOST, "127.0.0.1"))


def test_tls_at_a_plain_port(server: Any, caller: Any, files: dict[str, Path]) -> None:
    """TLS at a plain-text port is said in words."""
    caller.settings["tls_ca"] = files["ca"]
    with pytest.raises(ServerUnreachable, match="it does not speak TLS"):
        caller.image(server.target)


def turned_away(request: Any, context: grpc.ServicerContext) -> Any:
    refuse(context, grpc.StatusCode.UNAVAILABLE, "NOT_READY", retry_seconds=0.01)
    yield from ()


def test_rotation(server: Any, caller: Any) -> None:
    """A callable is asked before every attempt, so that a token can change in between; for every kind of call."""
    tokens = iter(["first", "second", "third"])
    caller.settings["token"] = lambda: next(tokens)
    server.play(turned_away, whole)
    caller.image(server.target)
    server.play(lambda request, context: iter([pb.GetCapabilitiesResponse()]))
    caller.ask(server.target, "capabilities")
    said = [metadata["authorization"] for metadata in server.metadata]
    assert said == ["Bearer first", "Bearer second", "Bearer third"]


async def test_asynchronous_token(server: Any) -> None:
    """AsyncClient awaits a token; Client says that it cannot."""

    async def token() -> str:
        return "awaited"

    server.play(whole)
    async with AsyncClient(server.target, token=token) as klein:
        await klein.generate("x")
    assert server.metadata[0]["authorization"] == "Bearer awaited"
    with Client(server.target, token=token) as blocking, pytest.raises(TypeError, match="needs AsyncClient"):
        blocking.generate("x")


def test_what_the_token_raises_is_raised(server: Any, caller: Any, tmp_path: Path) -> None:
    """A token that cannot be had is its callable's own error, and nothing is sent."""
    caller.settings["token"] = lambda: (tmp_path / "missing").read_text()
    with pytest.raises(FileNotFoundError):
        caller.image(server.target)
    assert not server.requests


@pytest.mark.parametrize("target", ["klein.example:50051", "10.0.0.1", "dns:///klein.example"])
def test_no_token_in_plain_text_to_others(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS a token stays on this machine, also one of the environment, unless it is allowed in so many words."""
    with pytest.raises(ValueError, match=r"is not sent to .* without TLS"):
        Client(target, token=SECRET)
    Client(target, token=SECRET, allow_plaintext_token=True).close()
    Client(target, token=SECRET, tls=True).close()
    monkeypatch.setenv("KLEIN_TOKEN", SECRET)
    with pytest.raises(ValueError, match="without TLS"):
        Client(target)
    Client(target, token="").close()


@pytest.mark.parametrize("token", ["with space", f"{SECRET}\n", "é"])
def test_impossible_tokens_are_not_quoted(token: str) -> None:
    """A token that cannot be sent is refused at once, and the error does not say it."""
    with pytest.raises(ValueError, match="token: ") as caught:
        Client("localhost", token=token)
    assert token not in str(caught.value)


def test_secrets_are_not_said(server: Any) -> None:
    """Neither the client nor what it raises shows the token, whoever refused it."""

    def unknown(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        yield from ()

    server.play(unknown)
    with Client(server.target, token=SECRET) as klein, pytest.raises(Unauthenticated) as caught:
        klein.generate("x").result()
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in f"{error!r} {error} {vars(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in repr(klein) + repr(klein._connection)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls_certificate": b"x"}, "one is of no use without the other"),
        ({"tls_ca": b"x"}, "tls_ca: the bytes given are not PEM"),
        ({"tls_ca": b"-----BEGIN CERTIFICATE-----\nxx"}, "tls_ca: the bytes given are not a certificate"),
        ({"tls": False, "tls_ca": b"x"}, "tls: False contradicts"),
        ({"credentials": grpc.ssl_channel_credentials(), "tls": True}, "credentials: given beside tls"),
        ({"token": "x", "metadata": [("authorization", "Bearer y")]}, "has an authorization already"),
        ({"metadata": [("Authorization", "x")]}, "'Authorization' has upper-case letters"),
        ({"metadata": [("a b", "x")]}, "'a b' is not a key"),
        ({"metadata": [("grpc-timeout", "x")]}, "'grpc-timeout' is not a key"),
        ({"metadata": [("a", "x\n")]}, "the value of 'a' is not printable"),
        ({"metadata": [("a", b"x")]}, "the key of such a value ends in -bin"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    """What contradicts itself or cannot be sent is a ValueError before anything connects."""
    with pytest.raises(ValueError, match=words):
        Client("localhost", **settings)


def test_misspelt_setting() -> None:
    """A setting that there is not is refused, and a file that is missing is named."""
    misspelt: Any = {"tokn": "x"}
    with pytest.raises(TypeError, match="no such setting: tokn"):
        Client("localhost", **misspelt)
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        Client("localhost", tls_ca="missing.pem")


def test_loopback_is_not_proxied(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is for this machine goes there, whatever proxy the environment names."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert os.environ["http_proxy"]
    server.play(whole)
    with Client(server.target, token=SECRET) as klein:
        assert klein.generate("x").result().data == PICTURE
