"""Which requests the web port lets in, over real sockets (web/{app,http,server}.py)."""

import ssl

import httpx
import pytest
import trustme
from klein.v1 import image_pb2
from kleinserve.core import Caller
from kleinserve.errors import Unauthenticated
from kleinserve.identity.authenticator import Credentials
from kleinserve.rpc.call import Call

from tests.web.answers import BINARY, framed, opened
from tests.web.ports import GENERATE, ports

LISTED = "https://app.example:8443"
ASKED = framed(image_pb2.GenerateRequest(prompt="a circle"))
KIND = {"content-type": BINARY}


class Behaviour:
    """Counts the calls that came through, and remembers their names."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def __call__(self, message: image_pb2.GenerateRequest, call: Call) -> None:
        self.calls.append(call)
        await call.write(image_pb2.ImageEvent())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "own"}, 200),
        ({"origin": LISTED}, 200),
        ({"origin": "https://app.example"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "127.0.0.1:1"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "app.example"}, 200),
        ({"host": "rebound.example"}, 421),
        ({"host": "localhost.rebound.example"}, 421),
        ({"host": "[::1"}, 421),
        ({"host": "rebound.example", "origin": "http://rebound.example"}, 421),
    ],
)
async def test_strangers_are_refused_before_any_work(headers: dict[str, str], status: int) -> None:
    """Only the page's own origin and listed ones, and only hosts that are ours, reach a call."""
    behaviour = Behaviour()
    async with ports(behaviour, web_origins=LISTED) as port, opened(port.web) as client:
        given = {name: port.web if value == "own" else value for name, value in headers.items()}
        response = await client.post(GENERATE, content=ASKED, headers={**KIND, **given})
    assert response.status_code == status
    assert len(behaviour.calls) == (status == 200)


async def test_with_callers_any_host_will_do(tmp_path: object) -> None:
    """A name that was pointed here brings no token along, so where there are callers it is no danger."""
    behaviour = Behaviour()
    async with ports(behaviour, callers="/dev/null") as port, opened(port.web) as client:
        response = await client.post(GENERATE, content=ASKED, headers={**KIND, "host": "images.example"})
        foreign = await client.post(GENERATE, content=ASKED, headers={**KIND, "origin": "https://images.example"})
    assert (response.status_code, foreign.status_code) == (200, 403)


async def test_a_listed_page_may_ask_and_read() -> None:
    """A preflight is answered to listed origins alone, and the status's headers are exposed to them."""
    asked = {"access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent"
    async with ports(Behaviour(), web_origins=LISTED) as port, opened(port.web) as client:
        preflight = await client.options(GENERATE, headers={"origin": LISTED, **asked})
        foreign = await client.options(GENERATE, headers={"origin": "https://evil.example", **asked})
        answer = await client.post(GENERATE, content=ASKED, headers={**KIND, "origin": LISTED})
    assert preflight.status_code == 200
    allowed = preflight.headers["access-control-allow-headers"].replace(" ", "").split(",")
    assert set(asked["access-control-request-headers"].split(",")) <= {name.lower() for name in allowed}
    assert foreign.status_code == 403
    for response in (preflight, answer):
        assert response.headers["access-control-allow-origin"] == LISTED
    exposed = answer.headers["access-control-expose-headers"].lower()
    for name in ("grpc-status", "grpc-message", "grpc-status-details-bin", "klein-request-id"):
        assert name in exposed


async def test_a_clients_certificate_names_its_caller() -> None:
    """With TLS the web port asks for a client's certificate as gRPC does, and hands on its alternative names."""
    authority, behaviour = trustme.CA(), Behaviour()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context()
    authority.configure_trust(client)

    class Named:
        def caller(self, credentials: Credentials) -> Caller:
            if credentials.names != ("DNS:web.internal",):
                raise Unauthenticated("unknown", "unknown")
            return Caller("web")

    async with ports(behaviour, Named(), server) as port:
        async with httpx.AsyncClient(verify=client, trust_env=False) as bare:
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                await bare.post(port.web + GENERATE, content=ASKED, headers=KIND)
        authority.issue_cert("web.internal").configure_cert(client)
        async with httpx.AsyncClient(verify=client, trust_env=False) as known:
            response = await known.post(port.web + GENERATE, content=ASKED, headers=KIND)
    assert response.status_code == 200
    assert [call.known.name for call in behaviour.calls] == ["web"]
