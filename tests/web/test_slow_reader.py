"""Readers of the web port that are slow, or stop: by the default a line of 2 KiB/s is no stalled reader."""

import asyncio
import socket
import time
from contextlib import suppress

import httpx
import pytest
from klein.v1 import image_pb2
from kleinserve.rpc.call import Call

from tests.web.answers import BINARY, framed
from tests.web.ports import GENERATE, ports

PIECE = 64 * 1024
IMAGE = b"\x80" * (512 * 1024)
STALL_SECONDS = 1.0
PACE = 120 * 1024  # bytes a second: of this limit what 2 KiB/s are of the default
OPENAI, JSON = "/v1/images/generations", "application/json"
ANSWERS = {
    "an image of OpenAI's": (OPENAI, JSON, b'{"prompt": "a circle"}'),
    "OpenAI's stream": (OPENAI, JSON, b'{"prompt": "a circle", "stream": true}'),
    "gRPC-Web": (GENERATE, BINARY, framed(image_pb2.GenerateRequest(prompt="a circle"))),
}


async def drawn(message: image_pb2.GenerateRequest, call: Call) -> None:
    """An image that is there at once, in the pieces of the default."""
    await call.begin()
    await call.write(image_pb2.ImageEvent(accepted=image_pb2.Accepted()))
    await call.write(image_pb2.ImageEvent(image_header=image_pb2.ImageHeader(size_bytes=len(IMAGE))))
    for offset in range(0, len(IMAGE), PIECE):
        chunk = image_pb2.ImageChunk(offset=offset, data=IMAGE[offset : offset + PIECE])
        await call.write(image_pb2.ImageEvent(image_chunk=chunk))
    await call.write(image_pb2.ImageEvent(completed=image_pb2.Completed()))


def connected(base: str, path: str, kind: str, body: bytes) -> socket.socket:
    """A request under way, on a line that holds little."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    line.settimeout(30)
    line.connect(("127.0.0.1", httpx.URL(base).port or 0))
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\n"
    line.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return line


def taken(line: socket.socket, pace: float) -> bytes:
    """All that comes until the end or the cut, read at this pace."""
    began, data = time.monotonic(), bytearray()
    with line, suppress(ConnectionResetError):
        while piece := line.recv(2048):
            data += piece
            time.sleep(max(0.0, began + len(data) / pace - time.monotonic()))
    return bytes(data)


async def test_a_slow_line_is_no_stall() -> None:
    """Each kind of answer arrives whole over a line of which the limit allows no less, over several times the limit."""
    async with ports(drawn, reader_stall_seconds=STALL_SECONDS) as port:
        lines = [connected(port.web, *asked) for asked in ANSWERS.values()]
        answers = await asyncio.gather(*(asyncio.to_thread(taken, line, PACE) for line in lines))
    for name, answer in zip(ANSWERS, answers, strict=True):
        assert len(answer) > len(IMAGE) > 3 * PACE * STALL_SECONDS, name
        assert answer.endswith(b"0\r\n\r\n"), name  # the last chunk of HTTP: nothing was cut


@pytest.mark.parametrize("asked", ANSWERS.values(), ids=ANSWERS)
async def test_who_takes_nothing_is_cut(asked: tuple[str, str, bytes]) -> None:
    """When the limit is over most of the answer is not held for who comes back, and what he finds is not whole."""
    async with ports(drawn, reader_stall_seconds=0.3) as port:
        line = connected(port.web, *asked)
        await asyncio.sleep(1.0)
        answer = await asyncio.to_thread(taken, line, 1e9)
    assert len(answer) < len(IMAGE) // 2
