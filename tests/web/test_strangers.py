"""What who may not call can hold of the web port: no body, and no more than so many connections."""

import asyncio

import httpx
import pytest
from kleinserve.errors import Unauthenticated
from kleinserve.web import server

from tests.web.answers import BINARY
from tests.web.ports import GENERATE, ports
from tests.web.test_grpcweb import CHECK, nothing

LARGE = 40 * 1024 * 1024


class Nobody:
    """Knows no caller."""

    def caller(self, credentials: object) -> None:
        raise Unauthenticated("no token", "none")


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [
        (GENERATE, BINARY, b"grpc-status: 16\r\n"),
        (CHECK, BINARY, b"grpc-status: 8\r\n"),
        ("/klein.v1.ImageService/Nothing", BINARY, b"grpc-status: 12\r\n"),
        ("/v1/images/generations", "application/json", b"HTTP/1.1 401 "),
        ("/v1/images/edits", "multipart/form-data; boundary=x", b"HTTP/1.1 401 "),
    ],
)
async def test_a_stranger_is_refused_before_his_body_is_held(path: str, kind: str, told: bytes) -> None:
    """The answer comes although the body has hardly begun, and counts as every refusal does."""
    async with ports(nothing, Nobody()) as port:  # type: ignore[arg-type]
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(port.web).port)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {LARGE}\r\n\r\n"
        writer.write(head.encode() + b"\0\0\0\1\0" * 2000)
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        counted = port.calls.metrics.exposition()
    assert told in answer
    is_call = told.endswith((b"16\r\n", b"401 "))
    assert (b'klein_unauthenticated_total{why="none"} 1.0' in counted) == is_call


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there may be is closed at once; when one has gone there is room again."""
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether a request on this connection has an answer."""
        try:
            writer.write(b"GET /v1/nothing HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return bool(await reader.read(1))
        except ConnectionError:
            return False

    async with ports(nothing) as port, asyncio.timeout(20):
        lines = [await asyncio.open_connection("127.0.0.1", httpx.URL(port.web).port) for _ in range(3)]
        assert [await answers(*line) for line in lines] == [True, True, False]
        lines[0][1].close()
        await lines[0][1].wait_closed()
        again = None
        while again is None or not await answers(*again):
            again = await asyncio.open_connection("127.0.0.1", httpx.URL(port.web).port)
            lines.append(again)
        for _, writer in lines:
            writer.close()
