"""gRPC-Web by itself: real sockets, calls whose methods the tests say (web/health.py)."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from klein.v1 import image_pb2
from kleinserve import errors
from kleinserve.errors import KleinError
from kleinserve.rpc.call import Call

from tests import refusals
from tests.web.answers import BINARY, TEXT, Answer, asked, framed, opened, over_grpc, over_web
from tests.web.ports import GENERATE, ports

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
ASKED = image_pb2.GenerateRequest(prompt="a circle")


def comparable(answer: Answer) -> tuple[object, ...]:
    """All of an answer but its request's id."""
    request_id = answer.trailing.get("klein-request-id", answer.initial.get("klein-request-id", "none"))
    details: list[object] = []
    for packed in answer.status.details if answer.status else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            assert info.metadata.pop("request_id") == request_id
            details.append(str(info))
        else:
            details.append(str(packed))
    trailing = {key: value for key, value in answer.trailing.items() if key != "klein-request-id"}
    status = (answer.status.code, answer.status.message) if answer.status else None
    return answer.messages, answer.code, answer.message, status, details, trailing


@pytest.mark.parametrize("is_begun", [False, True])
@pytest.mark.parametrize("kind", [BINARY, TEXT])
async def test_every_error_equals_grpcs(kind: str, is_begun: bool) -> None:
    """Code, message, details and trailing metadata of every error are gRPC's own, before a message and after one."""
    wanted: list[KleinError] = []

    async def fail(message: image_pb2.GenerateRequest, call: Call) -> None:
        if is_begun:
            await call.begin()
            await call.write(image_pb2.ImageEvent(sequence=7))
        raise wanted[0]

    async with ports(fail) as port:
        for error in refusals.EVERY:
            wanted[:] = [error]
            there, here = await over_grpc(port.grpc, GENERATE, ASKED), await over_web(port.web, GENERATE, ASKED, kind)
            assert comparable(here) == comparable(there), error.reason
            assert here.reason == error.reason
            assert len(here.messages) == is_begun


@pytest.mark.parametrize("kind", [BINARY, TEXT])
async def test_messages_come_as_they_were_written(kind: str) -> None:
    """Messages of any size arrive in order, whole, with the request id in the headers, and then OK."""
    sizes = (0, 1, 2, 3, 5, 65_536, 1_048_576, 16 * 1_048_576)

    async def answer(message: image_pb2.GenerateRequest, call: Call) -> None:
        assert message.prompt == "a circle"
        await call.begin()
        for size in sizes:
            await call.write(image_pb2.ImageEvent(image_chunk=image_pb2.ImageChunk(data=b"\x80" * size)))

    async with ports(answer) as port:
        here = await over_web(port.web, GENERATE, ASKED, kind)
    data = [image_pb2.ImageEvent.FromString(message).image_chunk.data for message in here.messages]
    assert data == [b"\x80" * size for size in sizes]
    assert here.code == "OK"
    assert re.fullmatch("[0-9a-f]{32}", here.initial["klein-request-id"])


async def nothing(message: image_pb2.GenerateRequest, call: Call) -> None:
    await call.write(image_pb2.ImageEvent())


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        (BINARY, framed(ASKED, flags=1), "UNIMPLEMENTED"),
        (BINARY, framed(ASKED) + framed(ASKED), "INTERNAL"),
        (BINARY, framed(ASKED)[:-1], "INTERNAL"),
        (BINARY, b"", "INTERNAL"),
        (TEXT, b"not base64!", "INTERNAL"),
        (TEXT, base64.b64encode(framed(ASKED, flags=0x80)), "UNIMPLEMENTED"),
        (BINARY, framed(b"x" * 1001), "RESOURCE_EXHAUSTED"),
        (TEXT, base64.b64encode(framed(b"x" * 1001)), "RESOURCE_EXHAUSTED"),
        (BINARY, framed(b"\xff\xff"), "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_no_message_is_refused(kind: str, body: bytes, code: str) -> None:
    """Compressed, cut, doubled and oversized bodies get the status that gRPC has for them."""
    async with ports(nothing, request_bytes_max=1000) as port, opened(port.web) as client:
        response = await client.post(GENERATE, content=body, headers={"content-type": kind})
        largest = await over_web(port.web, GENERATE, image_pb2.GenerateRequest(prompt="x" * 997), kind)
    codes = {"UNIMPLEMENTED": "12", "INTERNAL": "13", "RESOURCE_EXHAUSTED": "8", "INVALID_ARGUMENT": "3"}
    assert response.headers["grpc-status"] == codes[code]
    assert largest.code == "OK"


@pytest.mark.parametrize("kind", ["application/json", "application/grpc", "application/grpc-webby", ""])
async def test_another_content_type_is_415(kind: str) -> None:
    """What does not call itself gRPC-Web is refused before it is read."""
    async with ports(nothing) as port, opened(port.web) as client:
        response = await client.post(GENERATE, content=framed(ASKED), headers={"content-type": kind})
        assert response.status_code == 415


async def test_an_unknown_method_is_unimplemented() -> None:
    """As over gRPC, without details."""
    path = "/klein.v1.ImageService/Nothing"
    async with ports(nothing) as port:
        there, here = await over_grpc(port.grpc, path, ASKED), await over_web(port.web, path, ASKED)
    assert comparable(here) == comparable(there)


@pytest.mark.parametrize("service", ["", "klein.v1.ImageService", "klein.v1.UsageService", "unknown"])
async def test_health_says_what_grpcs_says(service: str) -> None:
    """Check, and Watch through a change, are the same on both ports; no caller is needed."""

    class Nobody:
        def caller(self, credentials: object) -> None:
            raise errors.Unauthenticated("no token", "none")

    request = health_pb2.HealthCheckRequest(service=service)
    async with ports(nothing, Nobody()) as port, opened(port.web) as client:  # type: ignore[arg-type]
        there, here = await over_grpc(port.grpc, CHECK, request), await over_web(port.web, CHECK, request)
        assert comparable(here) == comparable(there)
        async with asked(client, WATCH, request) as (_, messages):
            seen = [health_pb2.HealthCheckResponse.FromString(await anext(messages)).status]
            if service != "unknown":
                await port.server.say(is_serving=False)
                seen.append(health_pb2.HealthCheckResponse.FromString(await anext(messages)).status)
    kind = health_pb2.HealthCheckResponse
    assert seen == ([kind.SERVICE_UNKNOWN] if service == "unknown" else [kind.SERVING, kind.NOT_SERVING])


async def test_leaving_cancels() -> None:
    """An aborted fetch reaches the call as a broken stream does: it is cancelled, and counted so."""
    cancelled = asyncio.Event()

    async def wait(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.begin()
        await call.write(image_pb2.ImageEvent())
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with ports(wait) as port:
        async with opened(port.web) as client, asked(client, GENERATE, ASKED) as (_, messages):
            await anext(messages)
        async with asyncio.timeout(10):
            await cancelled.wait()
            while port.calls.running:  # noqa: ASYNC110
                await asyncio.sleep(0)
        counted = port.calls.metrics.exposition().decode()
    assert re.search(r'grpc_server_handled_total\{.*grpc_code="Canceled".*Generate.*\} 1\.0', counted)


@pytest.mark.parametrize("kind", [BINARY, TEXT])
async def test_the_deadline_ends_it(kind: str) -> None:
    """A call that has not ended at its grpc-timeout is cancelled and told DEADLINE_PASSED."""

    async def wait(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.begin()
        await asyncio.Event().wait()

    async with ports(wait) as port:
        here = await over_web(port.web, GENERATE, ASKED, kind, grpc_timeout="300m")
        assert (here.code, here.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_PASSED")
        assert not port.calls.running


async def test_a_slow_upload_counts_against_the_deadline() -> None:
    """What is left of it is counted from the request's arrival, and is less whenever it is asked for."""
    left: list[float | None] = []

    async def look(message: image_pb2.GenerateRequest, call: Call) -> None:
        left.append(call.transport.seconds_left())
        await asyncio.sleep(0.1)
        left.append(call.transport.seconds_left())

    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield framed(ASKED)

    headers = {"content-type": BINARY, "grpc-timeout": "60S"}
    async with ports(look) as port, opened(port.web) as client:
        await client.post(GENERATE, content=body(), headers=headers)
    first, second = left
    assert first is not None
    assert second is not None
    assert second + 0.05 < first < 59.8


async def test_a_stalled_reader_is_told_so() -> None:
    """A reader that takes nothing is dropped with READER_STALLED; what it finds when it reads on is bounded."""

    async def flood(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.begin()
        while True:
            await call.write(image_pb2.ImageEvent(image_chunk=image_pb2.ImageChunk(data=b"\0" * 65_000)))

    async with ports(flood, reader_stall_seconds=0.5) as port, opened(port.web) as client:
        async with asked(client, GENERATE, ASKED) as (answer, messages):
            await anext(messages)
            async with asyncio.timeout(30):
                while port.calls.running:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            async for data in messages:
                answer.messages.append(data)
        assert (answer.code, answer.reason) == ("ABORTED", "READER_STALLED")
        assert sum(map(len, answer.messages)) < 32 * 1_048_576  # what two sockets hold


async def test_draining_waits_and_then_says_so() -> None:
    """A stream that does not end within the grace is told DRAINING on both ports."""

    async def wait(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.begin()
        await asyncio.Event().wait()

    async with ports(wait) as port:
        both = asyncio.gather(over_grpc(port.grpc, GENERATE, ASKED), over_web(port.web, GENERATE, ASKED))
        while len(port.calls.running) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await port.calls.drain(0.1, errors.Draining())
        there, here = await both
    assert comparable(here) == comparable(there)
    assert here.reason == "DRAINING"


async def test_a_body_that_never_ends_is_cut() -> None:
    """A request that stops half-way costs its connection only for the stall limit."""
    async with ports(nothing, reader_stall_seconds=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(port.web).port)
        writer.write(f"POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\n".encode())
        writer.write(f"content-type: {BINARY}\r\ncontent-length: 99\r\n\r\nhalf".encode())
        async with asyncio.timeout(10):
            assert await reader.read() == b""  # cut without a word
        writer.close()
