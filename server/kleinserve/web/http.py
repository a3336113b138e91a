"""One HTTP request and its answer, and which requests are let in. Knows no endpoint."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from kleinserve.identity.authenticator import Credentials
from kleinserve.rpc.call import ReaderGone

CONNECTION = "kleinserve.connection"  # where the server puts a request's connection in its state
EXPOSED_HEADERS = (
    *("grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms"),
    *("klein-request-id", "retry-after", "x-should-retry"),
)
LOCAL = ("localhost", "127.0.0.1", "::1")
log = structlog.get_logger()
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Connection(Protocol):
    """What the server knows of a request's connection. `names`: its verified certificate's."""

    names: tuple[str, ...]

    def hurry(self) -> None:
        """Take what is sent from now on without waiting for the reader."""
        ...

    def abort(self) -> None:
        """Cut it, with what was not read."""
        ...


class BodyTooLarge(Exception):
    """The request's body is larger than what is taken."""


class Exchange:
    """One HTTP request, made when its headers have come, and its answer: what a transport of calls knows of both.

    Metadata keys are lower case.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope, self._receive, self._send = scope, receive, send
        self._arrived = asyncio.get_running_loop().time()
        self.is_begun = self.is_ended = False
        self.metadata: Mapping[str, str] = header_map(scope)

    @property
    def connection(self) -> Connection:
        connection: Connection = self.scope["state"][CONNECTION]
        return connection

    @property
    def peer(self) -> str:
        host, port = self.scope.get("client") or ("", 0)
        return f"{host}:{port}"

    @property
    def credentials(self) -> Credentials:
        headers = self.scope["headers"]
        tokens = tuple(value.decode("latin-1") for key, value in headers if key.lower() == b"authorization")
        return Credentials(tokens, self.connection.names)

    def seconds_left(self) -> float | None:
        """Of the header that gRPC has for it, from the request's arrival on."""
        match = re.fullmatch(r"(\d{1,8})([HMSmun])", self.metadata.get("grpc-timeout", ""))
        if match is None:
            return None
        return max(0.0, self._arrived + float(match[1]) * _UNITS[match[2]] - asyncio.get_running_loop().time())

    async def body(self, bytes_max: int, patience_seconds: float) -> bytearray:
        """The request's body. Raises: BodyTooLarge; ReaderGone, also when nothing comes for so long."""
        body = bytearray()
        while True:
            try:
                async with asyncio.timeout(patience_seconds):
                    event = await self._receive()
            except TimeoutError:
                raise ReaderGone from None
            if event["type"] == "http.disconnect":
                raise ReaderGone
            body += event.get("body", b"")
            if len(body) > bytes_max:
                raise BodyTooLarge
            if not event.get("more_body", False):
                return body

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the answer's status and headers."""
        self.is_begun = True
        given = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": given})

    async def piece(self, data: bytes, *, is_last: bool = False, patience_seconds: float | None = None) -> None:
        """Send a piece of the answer, once the reader has taken most of those before it.

        Raises: ReaderGone, also when it takes none for so long.
        """
        try:
            async with asyncio.timeout(patience_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        except OSError:  # a TimeoutError too
            raise ReaderGone from None
        self.is_ended = self.is_ended or is_last

    async def end(self) -> None:
        """End the answer, unless it has ended."""
        if not self.is_ended:
            await self.piece(b"", is_last=True)

    async def while_read(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; cancel it at the deadline, and when the reader goes: an aborted fetch, a closed tab.

        Cuts the connection where the answer is then not ended.
        """
        working = asyncio.create_task(work)
        leaving = asyncio.create_task(self._left())
        try:
            await asyncio.wait((working, leaving), timeout=self.seconds_left(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            working.cancel()
            await asyncio.wait((working,))
        if not self.is_ended:
            self.connection.abort()
        error = None if working.cancelled() else working.exception()
        if isinstance(error, ReaderGone):
            log.warning("answer not read", path=self.scope["path"], peer=self.peer)
        elif error is not None:
            raise error

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def header_map(scope: Scope) -> Mapping[str, str]:
    """Its headers by lower-case name; of several of one name the last."""
    return {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}


class Gate:
    """Lets in what comes from the page's own origin or a listed one, and answers the listed ones' preflights.

    Another `Origin` is 403 before any work. Where everyone is anonymous a page of a stranger could still reach us by a
    name that it points here: a `Host` that is neither the address, localhost nor listed is 421.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str], host: str, *, knows_callers: bool):
        self._origins, self._host, self._knows_callers = frozenset(origins), host.lower(), knows_callers
        self._app = CORSMiddleware(
            app,
            allow_origins=list(self._origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # no header gives a listed page more than its token does
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = header_map(scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        own = f"{scope['scheme']}://{host}"
        app: ASGIApp = self._app
        if not (self._knows_callers or self._is_ours(host, scope)):
            app = PlainTextResponse("this host is not served here\n", 421)
        elif origin is not None and origin != own and origin not in self._origins:
            app = PlainTextResponse("this origin may not call here\n", 403)
        await app(scope, receive, send)

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """Whether it is the address that the connection came to, or a name of it."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        listed = {urlsplit(origin).hostname for origin in self._origins}
        address = (scope.get("server") or ("", 0))[0]
        return name in (*LOCAL, self._host, address) or name in listed


Endpoint = Callable[[Exchange], Coroutine[Any, Any, None]]


class Served:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint):
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(Exchange(scope, receive, send))
