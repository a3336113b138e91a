"""identity/certificates.py: files that fit together, and a socket of Python's `ssl` that serves the newest."""

import asyncio
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import GeneralName
from kleinserve.errors import BadConfig
from kleinserve.identity.certificates import CertificateFiles, serving_context, watch_certificates
from kleinserve.identity.names import names_of_peer_certificate
from structlog.testing import capture_logs

from tests.identity.pki import DAY, DNS, LOCAL, URI, Leaf, leaf, pem


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, ca: trustme.CA) -> CertificateFiles:
    """A server's certificate, its key and a CA of clients that fit."""
    (tmp_path / "ca.pem").write_bytes(pem(ca))
    return CertificateFiles(*leaf(ca, *LOCAL).write(tmp_path), tmp_path / "ca.pem")


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA", "RSA, PKCS 1"])
def test_good(files: CertificateFiles, ca: trustme.CA, kind: str) -> None:
    """RSA and ECDSA keys with their certificates are taken byte for byte."""
    key = {"P-256": ec.generate_private_key(ec.SECP256R1()), "P-384": ec.generate_private_key(ec.SECP384R1())}.get(kind)
    key = key or rsa.generate_private_key(65537, 2048)
    given = leaf(ca, *LOCAL, key=key)
    if kind == "RSA, PKCS 1":
        traditional = serialization.PrivateFormat.TraditionalOpenSSL
        old = key.private_bytes(serialization.Encoding.PEM, traditional, serialization.NoEncryption())
        given = Leaf(old, given.chain)
    given.write(files.chain.parent)
    certificates = watch_certificates(files).value
    assert (certificates.key, certificates.chain, certificates.client_ca) == (given.key, given.chain, pem(ca))


def test_no_client_ca(files: CertificateFiles) -> None:
    """Without a CA of clients none is asked for a certificate."""
    certificates = watch_certificates(CertificateFiles(files.chain, files.key)).value
    assert certificates.client_ca is None
    assert certificates.context.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ((DNS("klein.internal"), DNS("other.internal")), "klein.internal"),
        ((URI("spiffe://prod/klein"), DNS("*.klein.svc")), "any.klein.svc"),
        ((URI("spiffe://prod/klein"),), ""),
        ((), ""),
        (LOCAL, ""),
    ],
)
def test_own_name(files: CertificateFiles, ca: trustme.CA, names: tuple[GeneralName, ...], name: str) -> None:
    """Its first DNS name, which fits a wildcard; none where it names addresses, which can be dialled as they are."""
    leaf(ca, *names).write(files.chain.parent)
    assert watch_certificates(files).value.name == name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("chain", b"", "chain.pem: no PEM certificate"),
        ("chain", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "chain.pem: no PEM certificate"),
        ("client_ca", b"junk", "ca.pem: no PEM certificate"),
        ("key", b"junk", "key.pem: no PEM private key"),
        ("key", leaf(trustme.CA()).key, "is not that of the first certificate"),
        ("key", leaf(trustme.CA(), password=b"s3cret").key, "the key is encrypted"),
        ("chain", None, "cannot read"),
        ("key", None, "cannot read"),
        ("client_ca", None, "cannot read"),
    ],
)
def test_bad(files: CertificateFiles, name: str, content: bytes | None, said: str) -> None:
    """One file that is unreadable or does not fit refuses all three, by a line that names it."""
    watched = watch_certificates(files)
    old = watched.value
    file: Path = getattr(files, name)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(BadConfig, match=said):
        watched.reload()
    assert watched.value is old


def test_bad_kind_of_key(files: CertificateFiles, ca: trustme.CA) -> None:
    """A key that grpc's TLS does not take is refused when it is read, not at every handshake."""
    leaf(ca, *LOCAL, key=ed25519.Ed25519PrivateKey.generate()).write(files.chain.parent)
    with pytest.raises(BadConfig, match="neither RSA nor ECDSA"):
        watch_certificates(files)


def test_half_a_rotation(files: CertificateFiles, ca: trustme.CA) -> None:
    """Between the write of a new chain and that of its key the old pair stays; then the new one serves."""
    watched = watch_certificates(files)
    new = leaf(ca, *LOCAL)
    files.chain.write_bytes(new.chain)
    with pytest.raises(BadConfig, match="is not that of the first certificate"):
        watched.reload()
    files.key.write_bytes(new.key)
    assert watched.reload()
    assert (watched.value.key, watched.value.chain) == (new.key, new.chain)


@pytest.mark.parametrize(
    ("since", "until", "event", "level"),
    [
        (-DAY, 90 * DAY, "certificate", "info"),
        (-DAY, 9 * DAY, "the server's certificate expires soon", "warning"),
        (-9 * DAY, -DAY, "the server's certificate has expired", "warning"),
        (DAY, 90 * DAY, "the server's certificate is not valid yet", "warning"),
    ],
)
def test_validity(
    files: CertificateFiles, ca: trustme.CA, since: timedelta, until: timedelta, event: str, level: str
) -> None:
    """How many days are left is logged; a certificate out of its time is warned of, and served all the same."""
    leaf(ca, *LOCAL, since=since, until=until).write(files.chain.parent)
    with capture_logs() as lines:
        watch_certificates(files)
    (line,) = lines
    assert (line["event"], line["log_level"], line["days_left"]) == (event, level, until.days - 1)


def test_nothing_secret_is_shown(files: CertificateFiles) -> None:
    """The key is in no representation of the certificates."""
    assert "PRIVATE" not in repr(watch_certificates(files).value)


async def seen(port: int, trusted: bytes, client: Leaf, directory: Path) -> str:
    """What the server on `port` answers to a client that trusts `trusted`: its names, or that it was refused."""
    try:
        reader, writer = await opened(port, trusted, client, directory)
    except ssl.SSLCertVerificationError:
        return "the client refused"
    try:
        return (await reader.readline()).decode().strip() or "the server refused"
    except ssl.SSLError as error:
        return f"the server refused: {error.reason}"
    finally:
        writer.close()


async def opened(
    port: int, trusted: bytes, client: Leaf, directory: Path
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to `port` with a client certificate."""
    context = ssl.create_default_context(cadata=trusted.decode())
    context.load_cert_chain(*client.write(directory))
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the client's names, then with what it says."""
    names = names_of_peer_certificate(writer.get_extra_info("ssl_object").getpeercert())
    writer.write(f"{' '.join(names)}\n".encode())
    while line := await reader.readline():
        writer.write(line)
    writer.close()


async def test_serving_context(files: CertificateFiles, ca: trustme.CA, tmp_path: Path) -> None:
    """A listening socket's next handshake uses the newest certificate and CA of clients; open connections stay."""
    watched, directory = watch_certificates(files), made(tmp_path / "client")
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=serving_context(lambda: watched.value))
    port = server.sockets[0].getsockname()[1]
    new_ca, client = trustme.CA(), leaf(ca, URI("spiffe://prod/web"), DNS("web.internal"), common_name="admin")
    new_client, cut = leaf(new_ca, URI("spiffe://prod/new")), leaf(ca, DNS("web.internal\0.evil.example"))
    async with server:
        reader, writer = await opened(port, pem(ca), client, directory)
        assert await reader.readline() == b"URI:spiffe://prod/web DNS:web.internal\n"
        assert (await seen(port, pem(ca), new_client, directory)).startswith("the server refused")
        assert await seen(port, pem(ca), cut, directory) == "DNS:web.internal\0.evil.example"

        leaf(new_ca, *LOCAL).write(tmp_path)
        write(tmp_path / "ca.pem", pem(new_ca))
        assert watched.reload()
        assert await seen(port, pem(new_ca), new_client, directory) == "URI:spiffe://prod/new"
        assert (await seen(port, pem(new_ca), client, directory)).startswith("the server refused")
        assert await seen(port, pem(ca), client, directory) == "the client refused"
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        writer.close()
        await writer.wait_closed()


async def test_no_resumption(files: CertificateFiles, ca: trustme.CA, tmp_path: Path) -> None:
    """A client that comes back with its session is verified anew: by the CA of now, not by that of its first time."""
    client = leaf(ca, URI("spiffe://prod/web")).write(made(tmp_path / "client"))
    context = ssl.create_default_context(cadata=pem(ca).decode())
    context.load_cert_chain(*client)

    def session(port: int, old: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        raw = socket.create_connection(("127.0.0.1", port))
        with context.wrap_socket(raw, server_hostname="localhost", session=old) as connection:
            assert connection.recv(100) == b"URI:spiffe://prod/web\n"  # with it a ticket would have come
            return connection.session, bool(connection.session_reused)

    def resumes(port: int) -> bool:
        first, _ = session(port, None)
        return session(port, first)[1]

    certificates = watch_certificates(files).value
    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=certificates.context) as plain:
        assert await asyncio.to_thread(resumes, plain.sockets[0].getsockname()[1])  # this test can see a resumption
    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=serving_context(lambda: certificates)) as server:
        assert not await asyncio.to_thread(resumes, server.sockets[0].getsockname()[1])


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
