"""Authorities and certificates for tests: trustme's CAs, and leaves with any alternative names and any dates."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

URI, DNS = x509.UniformResourceIdentifier, x509.DNSName
LOCAL: tuple[x509.GeneralName, ...] = (DNS("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Leaf:
    """A certificate and its key, PEM."""

    key: bytes
    chain: bytes

    def write(self, directory: Path) -> tuple[Path, Path]:
        """As chain.pem and key.pem in `directory`: their paths."""
        (directory / "chain.pem").write_bytes(self.chain)
        (directory / "key.pem").write_bytes(self.key)
        return directory / "chain.pem", directory / "key.pem"


def pem(ca: trustme.CA) -> bytes:
    """The authority's own certificate."""
    return ca.cert_pem.bytes()


def imitation(ca: trustme.CA) -> trustme.CA:
    """Another authority that carries `ca`'s name, with a key of its own."""
    name = x509.load_pem_x509_certificate(pem(ca)).subject
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - DAY, now + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return trustme.CA.from_pem(certificate.public_bytes(serialization.Encoding.PEM), encoded)


def leaf(
    ca: trustme.CA,
    *names: x509.GeneralName,
    common_name: str = "nobody",
    since: timedelta = -DAY,
    until: timedelta = 90 * DAY,
    key: CertificateIssuerPrivateKeyTypes | None = None,
    password: bytes | None = None,
) -> Leaf:
    """A certificate of `ca`, valid from `since` to `until` from now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(pem(ca))
    issuer_key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if names:
        certificate = certificate.add_extension(x509.SubjectAlternativeName(names), critical=False)
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return Leaf(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
        certificate.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
    )
