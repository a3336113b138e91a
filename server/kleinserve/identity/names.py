"""A verified certificate's alternative names, as the callers file writes them. Knows the shapes, not the transports.

Only names whose kind the transport tells apart count, so that a DNS name that looks like a URI stays a DNS name.
The common name is never one.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from cryptography import x509

# grpc's keys. Not x509_subject_alternative_name, which mixes all kinds.
GRPC_KINDS = {"peer_uri": "URI", "peer_dns": "DNS"}


def names_of_auth_context(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Of grpc's `context.auth_context()`; empty where there was no TLS or no client certificate.

    grpc for Python cuts each value at a NUL: `web.internal\\0.evil.example` would pass for `web.internal` (found with
    1.85.1). So a name counts only if the certificate itself, which grpc hands over too, holds it whole.
    """
    told = (
        f"{kind}:{value.decode('ascii', 'replace')}"
        for key, kind in GRPC_KINDS.items()
        for value in auth_context.get(key, ())
    )
    whole = frozenset[str]().union(*(_held(bytes(pem)) for pem in auth_context.get("x509_pem_cert", ())))
    return tuple(name for name in told if name in whole)


def names_of_peer_certificate(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Of `ssl`'s `getpeercert()`, which cuts nothing; empty where there was no TLS or no client certificate."""
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(f"{kind}:{value}" for kind, value in names if kind in GRPC_KINDS.values())


@lru_cache(maxsize=1024)  # every call of a connection brings its certificate again
def _held(pem: bytes) -> frozenset[str]:
    """The URIs and DNS names in a certificate; none in one that cannot be read."""
    try:
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return frozenset()
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return frozenset(
        [f"URI:{name}" for name in uris] + [f"DNS:{name}" for name in names.value.get_values_for_type(x509.DNSName)]
    )
