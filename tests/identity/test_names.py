"""identity/names.py: which of a certificate's names count."""

from kleinserve.identity.names import names_of_auth_context, names_of_peer_certificate


def test_auth_context() -> None:
    """Typed URIs and DNS names count; the untyped list, the common name, addresses and bytes beyond ASCII do not."""
    context = {
        "transport_security_type": [b"ssl"],
        "x509_common_name": [b"spiffe://prod/admin"],
        "x509_subject_alternative_name": [
            b"spiffe://prod/web",
            b"web.internal",
            b"spiffe://fake",
            b"a@b.c",
            b"10.0.0.1",
        ],
        "peer_uri": [b"spiffe://prod/web"],
        "peer_dns": [b"web.internal", b"spiffe://fake", b"w\xffb"],
        "peer_email": [b"a@b.c"],
        "peer_ip": [b"10.0.0.1"],
        "peer_spiffe_id": [b"spiffe://prod/web"],
    }
    assert names_of_auth_context(context) == ("URI:spiffe://prod/web", "DNS:web.internal", "DNS:spiffe://fake")


def test_no_certificate() -> None:
    """A connection without TLS, or without a client certificate, has no names."""
    assert names_of_auth_context({"transport_security_type": [b"insecure"]}) == ()
    assert names_of_peer_certificate(None) == names_of_peer_certificate({}) == ()


def test_peer_certificate() -> None:
    """Of `ssl`'s description the same kinds count."""
    certificate = {
        "subject": ((("commonName", "spiffe://prod/admin"),),),
        "subjectAltName": (("DNS", "web.internal"), ("URI", "spiffe://prod/web"), ("email", "a@b.c"), ("DNS", "wéb")),
    }
    assert names_of_peer_certificate(certificate) == ("DNS:web.internal", "URI:spiffe://prod/web")
