"""gRPC-Web, binary and text, as a transport of the same calls as gRPC.

Source: PROTOCOL-WEB.md of grpc/grpc. Differs: messages are never compressed.
"""

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from urllib.parse import quote

from kleinserve.errors import KleinError
from kleinserve.rpc.call import ReaderGone
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.status import CODES, status, trailing
from kleinserve.web.health import Health
from kleinserve.web.http import BodyTooLarge, Exchange

BINARY, TEXT = "application/grpc-web", "application/grpc-web-text"
_TYPE = re.compile(rf"{BINARY}(-text)?(\+proto)?\s*(;|$)")
_TRAILERS = 0x80
HEALTH_BYTES_MAX = 4096  # of a service's name, from anybody
_SAFE = " !#$&'()*+,-./:;<=>?@[]^_`{|}~\"\\"  # of grpc-message: printable ASCII but for the percent sign


class GrpcWeb:
    """Answers `POST /klein.v1.ImageService/Generate` and the like."""

    def __init__(self, calls: Calls, health: Health):
        self._calls, self._health = calls, health

    async def __call__(self, exchange: Exchange) -> None:
        if not _TYPE.match(exchange.metadata.get("content-type", "")):
            await exchange.head(415, {"content-type": "text/plain"})
            await exchange.piece(f"the content type is {BINARY} or {TEXT}\n".encode(), is_last=True)
            return
        answer, path = Answer(exchange), exchange.scope["path"]
        try:
            body = await self._body(path, answer)
        except ReaderGone:
            exchange.connection.abort()
        except Unusable as error:  # as gRPC's own refusals: without details
            await answer.end(*error.args)
        else:
            await exchange.while_read(self._serve(path, body, answer))

    async def _body(self, path: str, answer: "Answer") -> list[bytes]:
        """The call's message; where its caller will be refused none, nor is it held. Raises: Unusable, ReaderGone."""
        config = self._calls.config
        if path in self._health:
            return [await answer.message(HEALTH_BYTES_MAX, config.reader_stall_seconds)]
        if path not in self._calls.methods:
            raise Unusable("UNIMPLEMENTED", "Method not found!")
        try:
            self._calls.caller(answer)
        except KleinError:  # as it is told, counted and logged by serving it
            return []
        return [await answer.message(config.request_bytes_max, config.reader_stall_seconds)]

    async def _serve(self, path: str, body: list[bytes], answer: "Answer") -> None:
        if path in self._calls.methods:
            await self._calls.serve(path, body, answer)
        else:
            await self._health.serve(path, body.pop(), answer)
        await answer.end("OK")


class Unusable(Exception):
    """A request that is no message: a status code's name, and why."""


class Answer:
    """One RPC's answer, a transport of calls. Its headers wait for the first message: a refusal is headers alone."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange
        self.peer, self.metadata, self.credentials = exchange.peer, exchange.metadata, exchange.credentials
        self.seconds_left = exchange.seconds_left
        self._is_text = self.metadata["content-type"].startswith(TEXT)
        self._initial: Mapping[str, str] = {}

    async def message(self, bytes_max: int, patience_seconds: float) -> bytes:
        """The one message of the request. Raises: Unusable; ReaderGone."""
        try:
            body = await self._exchange.body(self._sent(bytes_max + 5), patience_seconds)
            framed = base64.b64decode(body, validate=True) if self._is_text else body
            flags, length = struct.unpack_from(">BI", framed)
        except BodyTooLarge:
            raise Unusable("RESOURCE_EXHAUSTED", f"Received message larger than max ({bytes_max})") from None
        except (binascii.Error, struct.error):
            raise Unusable("INTERNAL", "no gRPC-Web frame; one message is required") from None
        if flags:
            raise Unusable("UNIMPLEMENTED", f"frame flags {flags:#04x}; one uncompressed message is taken")
        if len(framed) != 5 + length:
            raise Unusable("INTERNAL", f"a frame of {length} bytes in a body of {len(framed)}; one message is required")
        return bytes(memoryview(framed)[5:])

    def _sent(self, bytes_max: int) -> int:
        """How many bytes they are in this encoding."""
        return -(-bytes_max // 3) * 4 if self._is_text else bytes_max

    async def begin(self, metadata: Mapping[str, str]) -> None:
        self._initial = metadata
        await self._head({})

    async def write(self, message: bytes) -> None:
        if not self._exchange.is_begun:
            await self._head({})
        await self._frame(0, message)

    async def refuse(self, error: KleinError, request_id: str) -> None:
        made = status(error, request_id)
        details = base64.b64encode(made.SerializeToString()).rstrip(b"=").decode()
        more = {"grpc-status-details-bin": details} | dict(trailing(error, request_id))
        await self.end(error.status, made.message, more)

    async def end(self, code: str, message: str = "", more: Mapping[str, str] | None = None) -> None:
        """End with this status, unless it has ended; a slow reader is not waited for."""
        if self._exchange.is_ended:
            return
        trailers = {"grpc-status": str(CODES[code]), "grpc-message": quote(message, safe=_SAFE)} | dict(more or {})
        self._exchange.connection.hurry()
        if not self._exchange.is_begun:  # in the headers where there is no body
            await self._head(trailers)
        else:
            text = "".join(f"{key}:{value}\r\n" for key, value in trailers.items())
            await self._frame(_TRAILERS, text.encode())
        await self._exchange.piece(b"", is_last=True)

    async def _head(self, more: Mapping[str, str]) -> None:
        kind = TEXT if self._is_text else BINARY
        await self._exchange.head(
            200, {"content-type": f"{kind}+proto", "cache-control": "no-store"} | {**self._initial, **more}
        )

    async def _frame(self, flags: int, data: bytes) -> None:
        framed = struct.pack(">BI", flags, len(data)) + data
        await self._exchange.piece(base64.b64encode(framed) if self._is_text else framed)
