"""gRPC-Web, binary and text, as a transport of the same calls as gRPC. An ASGI endpoint.

Source: PROTOCOL-WEB.md of grpc/grpc. Differs: messages are never compressed.
"""

import asyncio
import base64
import binascii
import re
import struct
from collections.abc import Mapping
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from kleinserve.errors import InvalidField, KleinError, Violation
from kleinserve.identity.authenticator import Credentials
from kleinserve.rpc.call import Calls, ReaderGone
from kleinserve.rpc.status import CODES, status, trailing
from kleinserve.web.http import credentials, header_map

BINARY, TEXT = "application/grpc-web", "application/grpc-web-text"
_TRAILERS = 0x80
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class GrpcWeb:
    """Answers `POST /klein.v1.ImageService/Generate` and the like."""

    def __init__(self, calls: Calls):
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _Transport(scope, send)
        try:
            body = await transport.message(receive, self._calls.config.request_bytes_max)
        except ReaderGone:
            return
        except KleinError as error:
            await transport.refuse(error, "")
            return
        serving = asyncio.create_task(self._calls.serve(scope["path"], body, transport))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():  # an aborted fetch, a closed tab
                serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            if serving.cancelled() or serving.exception() is not None:
                return
            await transport.finish()
        finally:
            leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Transport:
    """One HTTP exchange. Its answer's headers wait for the first message, so that a refusal can be all headers."""

    def __init__(self, scope: Scope, send: Send):
        self._scope, self._send = scope, send
        self._metadata = header_map(scope)
        self._is_text = self._metadata.get("content-type", "").startswith(TEXT)
        self._is_begun = self._is_ended = False
        self._initial: dict[str, str] = {}

    @property
    def peer(self) -> str:
        host, port = self._scope.get("client") or ("", 0)
        return f"{host}:{port}"

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata

    @property
    def credentials(self) -> Credentials:
        return credentials(self._scope)

    def seconds_left(self) -> float | None:
        match = re.fullmatch(r"(\d{1,8})([HMSmun])", self._metadata.get("grpc-timeout", ""))
        return float(match[1]) * _UNITS[match[2]] if match else None

    async def message(self, receive: Receive, bytes_max: int) -> bytes:
        """The one message of the request. Raises: InvalidField, RequestTooLarge; ReaderGone."""
        limit = (bytes_max + 5) * 4 // 3 + 8 if self._is_text else bytes_max + 5
        body = bytearray()
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise ReaderGone
            body += event.get("body", b"")
            if len(body) > limit:
                raise InvalidField(Violation("request", f"over {bytes_max} bytes; at most {bytes_max}"))
            if not event.get("more_body", False):
                return self._unframed(bytes(body))

    def _unframed(self, body: bytes) -> bytes:
        try:
            framed = base64.b64decode(body, validate=True) if self._is_text else body
            flags, length = struct.unpack_from(">BI", framed)
        except (binascii.Error, struct.error):
            raise InvalidField(Violation("request", "no gRPC-Web frame; one message is required")) from None
        if flags or len(framed) != 5 + length:
            said = f"{len(framed)} bytes with flags {flags}; one uncompressed message of {length} bytes is announced"
            raise InvalidField(Violation("request", said))
        return framed[5:]

    async def begin(self, metadata: Mapping[str, str]) -> None:
        self._initial = dict(metadata)
        await self._headers({})

    async def write(self, message: bytes) -> None:
        if not self._is_begun:
            await self._headers({})
        await self._frame(0, message)

    async def finish(self) -> None:
        """End with OK, unless it was refused."""
        if not self._is_ended:
            await self._end({"grpc-status": "0", "grpc-message": ""})

    async def refuse(self, error: KleinError, request_id: str) -> None:
        made = status(error, request_id)
        details = base64.b64encode(made.SerializeToString()).rstrip(b"=").decode()
        sent = {
            "grpc-status": str(CODES[error.status]),
            "grpc-message": quote(made.message, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"\\"),
            "grpc-status-details-bin": details,
        }
        await self._end(sent | dict(trailing(error, request_id)))

    async def _end(self, trailers: dict[str, str]) -> None:
        self._is_ended = True
        if not self._is_begun:  # in the headers where there is no body
            await self._headers(trailers)
        else:
            text = "".join(f"{key}:{value}\r\n" for key, value in trailers.items())
            await self._frame(_TRAILERS, text.encode())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _headers(self, more: Mapping[str, str]) -> None:
        self._is_begun = True
        kind = TEXT if self._is_text else BINARY
        sent = {"content-type": f"{kind}+proto", "cache-control": "no-store", **self._initial, **more}
        headers = [(key.encode(), value.encode()) for key, value in sent.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _frame(self, flags: int, data: bytes) -> None:
        """Returns when the connection has room for more: uvicorn waits where the reader is slow."""
        framed = struct.pack(">BI", flags, len(data)) + data
        body = base64.b64encode(framed) if self._is_text else framed
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
        except OSError:
            raise ReaderGone from None
