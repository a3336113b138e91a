"""A verified certificate's alternative names, as the callers file writes them. Knows the shapes, not the libraries.

Only names whose kind the transport tells apart count, so that a DNS name that looks like a URI stays a DNS name.
The common name is never one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

GRPC_KINDS = {"peer_uri": "URI", "peer_dns": "DNS"}  # not x509_subject_alternative_name, which mixes all kinds


def names_of_auth_context(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Of grpc's `context.auth_context()`; empty where there was no TLS or no client certificate."""
    return tuple(
        f"{kind}:{value.decode('ascii')}"
        for key, kind in GRPC_KINDS.items()
        for value in auth_context.get(key, ())
        if value.isascii()
    )


def names_of_peer_certificate(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Of `ssl`'s `getpeercert()`; empty where there was no TLS or no client certificate."""
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(f"{kind}:{value}" for kind, value in names if kind in GRPC_KINDS.values() and value.isascii())
