"""One call over gRPC or over gRPC-Web, and what came back: the same facts of both."""

import base64
import re
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

import grpc
import httpx
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text+proto"
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_TRAILERS = 0x80


@dataclass
class Answer:
    """The messages of one call, its metadata and its end."""

    initial: Mapping[str, str] = field(default_factory=dict)
    messages: list[bytes] = field(default_factory=list)
    trailing: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    status: status_pb2.Status | None = None

    @property
    def reason(self) -> str:
        info = error_details_pb2.ErrorInfo()
        if self.status is not None:
            self.status.details[0].Unpack(info)
        return info.reason


def framed(message: Message | bytes, flags: int = 0) -> bytes:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack(">BI", flags, len(data)) + data


async def over_grpc(
    target: str, path: str, message: Message, timeout_seconds: float | None = None, **metadata: str
) -> Answer:
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        given = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        call = channel.unary_stream(path)(message.SerializeToString(), metadata=given, timeout=timeout_seconds)
        answer = Answer()
        try:
            async for data in call:
                answer.messages.append(data)
        except grpc.aio.AioRpcError:
            pass
        answer.initial = dict(await call.initial_metadata())
        trailing = dict(await call.trailing_metadata())
        answer.code, answer.message = (await call.code()).name, await call.details()
        packed = trailing.pop("grpc-status-details-bin", None)
        answer.status = None if packed is None else status_pb2.Status.FromString(packed)
        answer.trailing = trailing
        return answer


async def over_web(base: str, path: str, message: Message, kind: str = BINARY, **metadata: str) -> Answer:
    async with opened(base) as client, asked(client, path, message, kind, **metadata) as (answer, messages):
        async for data in messages:
            answer.messages.append(data)
        return answer


@asynccontextmanager
async def opened(base: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=60) as client:
        yield client


@asynccontextmanager
async def asked(
    client: httpx.AsyncClient, path: str, message: Message, kind: str = BINARY, **metadata: str
) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
    """A call under way: its answer, complete once its messages have been read. Leaving early aborts it."""
    body = framed(message) if kind == BINARY else base64.b64encode(framed(message))
    headers = {"content-type": kind} | {key.replace("_", "-"): value for key, value in metadata.items()}
    async with client.stream("POST", path, content=body, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == kind
        answer = Answer(initial=response.headers)
        yield answer, _messages(response, answer, is_text=kind == TEXT)


async def _messages(response: httpx.Response, answer: Answer, *, is_text: bool) -> AsyncIterator[bytes]:
    buffer, encoded = bytearray(), b""
    async for piece in response.aiter_raw():
        if is_text:  # padded pieces stand one after another
            encoded += piece
            whole, encoded = encoded[: len(encoded) // 4 * 4], encoded[len(encoded) // 4 * 4 :]
            piece = b"".join(base64.b64decode(part) for part in re.findall(b"[^=]+=*", whole))
        buffer += piece
        while len(buffer) >= 5 and len(buffer) >= 5 + (length := struct.unpack_from(">BI", buffer)[1]):
            flags, data = buffer[0], bytes(buffer[5 : 5 + length])
            del buffer[: 5 + length]
            if flags & _TRAILERS:
                lines = data.decode().splitlines()
                _end(answer, dict(line.split(":", 1) for line in lines))
            else:
                yield data
    assert len(buffer) + len(encoded) == 0, "a frame was cut"
    if not answer.code:
        _end(answer, {key: value for key, value in response.headers.items() if key.startswith(("grpc-", "klein-"))})


def _end(answer: Answer, trailers: dict[str, str]) -> None:
    answer.code, answer.message = CODES[int(trailers.pop("grpc-status"))], unquote(trailers.pop("grpc-message"))
    packed = trailers.pop("grpc-status-details-bin", None)
    if packed is not None:
        answer.status = status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4)))
    answer.trailing = trailers
