"""Who the client is and whom it trusts: token, certificates, metadata. What is secret is never quoted."""

import os
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from os import PathLike
from pathlib import Path

import grpc

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or what gives one: it is called before every attempt, and may be asynchronous for AsyncClient."""

Pem = bytes | str | PathLike[str]
"""PEM as bytes, or the path of such a file."""

Metadata = Sequence[tuple[str, str | bytes]]


def bearer(token: str) -> tuple[str, str]:
    """The token as metadata. Raises: ValueError, without quoting it."""
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("token: it is empty, or has spaces or characters that are not ASCII")
    return "authorization", f"Bearer {token}"


def token_of_file(path: Path) -> Callable[[], str]:
    """Reads the token anew for every attempt, so that it can be replaced while a client runs."""
    return lambda: path.read_text().strip()


def checked_metadata(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """Raises: ValueError for what gRPC would refuse later with fewer words."""
    for key, value in metadata:
        if key != key.lower():
            raise ValueError(f"metadata: {key!r} has upper-case letters; gRPC takes lower case alone")
        if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
            raise ValueError(f"metadata: {key!r} is not a key that may be sent")
        if isinstance(value, str) and not re.fullmatch(r"[\x20-\x7e]*", value):
            raise ValueError(f"metadata: the value of {key!r} is not printable ASCII")
        if isinstance(value, bytes) and not key.endswith("-bin"):
            raise ValueError(f"metadata: the value of {key!r} is bytes; the key of such a value ends in -bin")
    return tuple(metadata)


def channel_credentials(
    tls: bool | None, ca: Pem | None, certificate: Pem | None, key: Pem | None
) -> grpc.ChannelCredentials | None:
    """TLS where any of these asks for it; without `ca` the well-known authorities are trusted.

    Raises: ValueError for what contradicts itself or is no PEM; OSError for a file that cannot be read.
    """
    if (certificate is None) != (key is None):
        raise ValueError("tls_certificate and tls_key: one is of no use without the other")
    ca = os.environ.get("KLEIN_TLS_CA") if ca is None and tls is not False else ca
    if tls is False and (ca or certificate):
        raise ValueError("tls: False contradicts the certificates that are given")
    if not (tls or ca or certificate):
        return None
    return grpc.ssl_channel_credentials(_pem("tls_ca", ca), _pem("tls_key", key), _pem("tls_certificate", certificate))


def _pem(name: str, given: Pem | None) -> bytes | None:
    if not given:
        return None
    pem = given if isinstance(given, bytes) else Path(given).read_bytes()
    whose = "the bytes given are" if isinstance(given, bytes) else f"{given} is"
    if b"-----BEGIN " not in pem:
        raise ValueError(f"{name}: {whose} not PEM")
    if name != "tls_key":
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError):
            raise ValueError(f"{name}: {whose} not a certificate") from None
    return pem
