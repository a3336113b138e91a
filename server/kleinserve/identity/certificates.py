"""The server's certificate, its key, and the CA of its clients: read and checked together. Knows no transport."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kleinserve.errors import BadConfig
from kleinserve.identity.reload import Read, Watched

WARN_BEFORE = timedelta(days=14)

log = structlog.get_logger()


@dataclass(frozen=True)
class CertificateFiles:
    """Where they are: PEM files. `chain`: the server's certificate first. `client_ca` None: clients need none."""

    chain: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Certificates:
    """PEM that fits together. `valid_until`: when the server's certificate expires, UTC.

    `name`: its first DNS name, with `any` in place of a wildcard; empty: it has none, or names addresses itself.
    """

    key: bytes = field(repr=False)
    chain: bytes
    client_ca: bytes | None
    valid_until: datetime
    name: str
    context: ssl.SSLContext = field(repr=False, compare=False)  # of the same files, for servers of Python's `ssl`


def watch_certificates(files: CertificateFiles) -> Watched[Certificates]:
    """The certificate files, read now and again whenever one changes. Raises: BadConfig."""
    return Watched("certificates", lambda read: load(files, read))


def load(files: CertificateFiles, read: Read) -> Certificates:
    """The files' content, checked as a whole. An expired certificate is warned of, not refused.

    Raises: BadConfig, one line that names the file.
    """
    chain, key = read(files.chain), read(files.key)
    client_ca = read(files.client_ca) if files.client_ca else None
    certificate = _certificates(files.chain, chain)[0]
    if _private_key(files.key, key).public_key() != certificate.public_key():
        raise BadConfig(f"the key in {files.key} is not that of the first certificate in {files.chain}")
    if files.client_ca and client_ca is not None:
        _certificates(files.client_ca, client_ca)
    context = _context(files, client_ca)
    _tell_validity(files.chain, certificate)
    return Certificates(key, chain, client_ca, certificate.not_valid_after_utc, _name(certificate), context)


def serving_context(newest: Callable[[], Certificates]) -> ssl.SSLContext:
    """A context for a listening socket whose every handshake uses the newest certificates and client CA.

    TLS 1.3 without tickets: a session that was resumed would be judged by the CA of its first handshake. Whether
    clients need a certificate is settled here, once.
    """

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = newest().context

    first = newest()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = first.context.verify_mode
    context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
    context.sni_callback = choose  # called for clients that send no name too
    return context


def _certificates(file: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise BadConfig(f"{file}: no PEM certificate that can be read") from None


def _name(certificate: x509.Certificate) -> str:
    try:
        listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ""
    names = [] if listed.get_values_for_type(x509.IPAddress) else listed.get_values_for_type(x509.DNSName)
    return names[0].replace("*", "any") if names else ""


def _private_key(file: Path, pem: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise BadConfig(f"{file}: the key is encrypted; the server asks nobody for a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadConfig(f"{file}: no PEM private key that can be read") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise BadConfig(f"{file}: the key is neither RSA nor ECDSA")  # grpc's TLS takes no other
    return key


def _context(files: CertificateFiles, client_ca: bytes | None) -> ssl.SSLContext:
    """`ssl` takes keys from files only: where one has changed since it was read, the next check finds it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(files.chain, files.key, password=b"")
        if client_ca is not None:
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise BadConfig(f"{files.chain} and {files.key} cannot be used: {error}") from None
    return context


def _tell_validity(file: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    left = certificate.not_valid_after_utc - now
    facts = {"file": str(file), "days_left": left.days, "valid_until": certificate.not_valid_after_utc.isoformat()}
    if left < timedelta(0):
        log.warning("the server's certificate has expired", **facts)
    elif certificate.not_valid_before_utc > now:
        log.warning("the server's certificate is not valid yet", **facts)
    elif left < WARN_BEFORE:
        log.warning("the server's certificate expires soon", **facts)
    else:
        log.info("certificate", **facts)
