"""The web port with the certificates and callers of a real server."""

import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from klein.v1 import image_pb2

from tests.web.answers import BINARY, framed
from tests.web.conftest import web_served

CAPABILITIES = "/klein.v1.ImageService/GetCapabilities"
ASKED, KIND = framed(image_pb2.GetCapabilitiesRequest()), {"content-type": BINARY}


def test_a_certificate_is_who_calls(tmp_path: Path) -> None:
    """With TLS flags the web port needs a client's certificate, whose name is its caller; another name is refused."""
    authority = trustme.CA()
    paths = {name: tmp_path / name for name in ("chain", "key", "ca", "callers")}
    server = authority.issue_cert("localhost", "127.0.0.1")
    paths["chain"].write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    paths["key"].write_bytes(server.private_key_pem.bytes())
    paths["ca"].write_bytes(authority.cert_pem.bytes())
    paths["callers"].write_text('[callers.web]\ncertificates = ["DNS:web.internal"]\n')
    flags = {"tls-certificate": "chain", "tls-key": "key", "tls-client-ca": "ca", "callers": "callers"}
    arguments = [part for flag, name in flags.items() for part in (f"--{flag}", str(paths[name]))]

    def asked(name: str | None) -> httpx.Response:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if name is not None:
            authority.issue_cert(name).configure_cert(context)
        with httpx.Client(verify=context, trust_env=False) as client:
            return client.post(web.base.replace("http:", "https:") + CAPABILITIES, content=ASKED, headers=KIND)

    with web_served(tmp_path, *arguments) as web:
        assert "grpc-status" not in asked("web.internal").headers  # OK is in the trailers
        assert asked("other.internal").headers["grpc-status"] == "16"
        with pytest.raises(httpx.TransportError):
            asked(None)
