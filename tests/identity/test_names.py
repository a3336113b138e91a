"""identity/names.py: which of a certificate's names count."""

import ipaddress

import trustme
from cryptography import x509
from kleinserve.identity.names import names_of_auth_context, names_of_peer_certificate

from tests.identity.pki import DNS, URI, leaf

CA = trustme.CA()


def test_auth_context() -> None:
    """Typed URIs and DNS names count; the untyped list, the common name, mail and numeric addresses do not."""
    names = (URI("spiffe://prod/web"), DNS("web.internal"), DNS("spiffe://fake"), x509.RFC822Name("a@b.c"))
    address = x509.IPAddress(ipaddress.ip_address("10.0.0.1"))
    context = {
        "transport_security_type": [b"ssl"],
        "x509_common_name": [b"spiffe://prod/admin"],
        "x509_pem_cert": [leaf(CA, *names, address, common_name="spiffe://prod/admin").chain],
        "x509_subject_alternative_name": [
            b"spiffe://prod/web",
            b"web.internal",
            b"spiffe://fake",
            b"a@b.c",
            b"10.0.0.1",
        ],
        "peer_uri": [b"spiffe://prod/web"],
        "peer_dns": [b"web.internal", b"spiffe://fake"],
        "peer_email": [b"a@b.c"],
        "peer_ip": [b"10.0.0.1"],
        "peer_spiffe_id": [b"spiffe://prod/web"],
    }
    assert names_of_auth_context(context) == ("URI:spiffe://prod/web", "DNS:web.internal", "DNS:spiffe://fake")


def test_cut_name() -> None:
    """A name that grpc cut at a NUL does not count, nor does any whose certificate is missing or unreadable."""
    held = {"x509_pem_cert": [leaf(CA, DNS("web.internal\0.evil.example"), URI("spiffe://prod/web")).chain]}
    told = {"peer_dns": [b"web.internal"], "peer_uri": [b"spiffe://prod/web"]}
    assert names_of_auth_context(told | held) == ("URI:spiffe://prod/web",)
    assert names_of_auth_context(told) == ()
    assert names_of_auth_context(told | {"x509_pem_cert": [b"junk"]}) == ()
    assert names_of_auth_context(told | {"x509_pem_cert": [leaf(CA).chain]}) == ()


def test_no_certificate() -> None:
    """A connection without TLS, or without a client certificate, has no names."""
    assert names_of_auth_context({"transport_security_type": [b"insecure"]}) == ()
    assert names_of_peer_certificate(None) == names_of_peer_certificate({}) == ()


def test_peer_certificate() -> None:
    """Of `ssl`'s description the same kinds count."""
    certificate = {
        "subject": ((("commonName", "spiffe://prod/admin"),),),
        "subjectAltName": (("DNS", "web.internal"), ("URI", "spiffe://prod/web"), ("email", "a@b.c")),
    }
    assert names_of_peer_certificate(certificate) == ("DNS:web.internal", "URI:spiffe://prod/web")
