"""The metrics port: /metrics, /healthz, /readyz and /debug/requests over plain HTTP.

On an event loop and a thread of its own, so that it answers while the server's own loop is held up. A connection is one
request; one that says nothing, or does not read, costs a socket for `PATIENCE_SECONDS` and holds nobody up.
"""

import asyncio
import errno
import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, parse_headers
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from kleinserve.config import Config
from kleinserve.errors import BadConfig, Unauthenticated

PATIENCE_SECONDS = 10.0  # for a request to come, and for its answer to go
CONNECTIONS_MAX = 512  # then the one that has waited longest goes
HEAD_BYTES_MAX = 16 * 1024
MAIN_LOOP_SECONDS = 5.0  # for the server's own loop to answer /debug

log = structlog.get_logger()
T = TypeVar("T")


class Health(NamedTuple):
    """What the probes say: a word or a few (`ready`, `ledger down`), and whether it lives and is to get requests."""

    reason: str
    is_alive: bool
    is_ready: bool


@dataclass(frozen=True)
class Debug:
    """What stands behind /debug/requests. `requests` and `cancel` are called on `loop`, `is_admin` on the probes' own.

    requests: one JSON object for each that waits or runs. cancel: ends the one with this id; False: it cannot.
    is_admin: whether the value of an `authorization` header is an admin's. Raises: Unauthenticated. None: there are
    no callers, and whoever is on this machine may do all.
    """

    loop: asyncio.AbstractEventLoop
    requests: Callable[[], list[dict[str, Any]]]
    cancel: Callable[[str], bool]
    is_admin: Callable[[str], bool] | None = None


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, reason: str = ""):
        super().__init__(reason or status.phrase.lower())
        self.status = status


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: HTTPMessage
    peer: str

    @property
    def is_local(self) -> bool:
        """Whether a program on this machine asks for itself: no page in a browser, no proxy for another."""
        if not _is_loopback(self.peer) or any(
            self.headers[name] for name in ("origin", "forwarded", "x-forwarded-for")
        ):
            return False
        host = re.sub(r":\d+$", "", self.headers["host"] or "").strip("[]").lower()
        return host in ("", "localhost") or _is_loopback(host)  # no other name: it may have been rebound to us


class Probes:
    """The metrics port of `config.host`, from the constructor until `stop`. `port` is the one it got.

    `exposition` and `health` are called on the probes' own thread and must not block.

    Raises: BadConfig, one line with the address, where the port is taken.
    """

    def __init__(
        self,
        config: Config,
        exposition: Callable[[], bytes],
        health: Callable[[], tuple[str, bool, bool]],
        debug: Debug | None = None,
    ):
        self._exposition, self._health, self._debug = exposition, health, debug
        self._sockets = _listening(config)
        self.port: int = self._sockets[0].getsockname()[1]
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._is_started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)
        self._thread.start()
        self._is_started.wait()

    def stop(self) -> None:
        """Close the port and every connection, within a second or so."""
        with suppress(RuntimeError):  # stopped already
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        starts = [
            asyncio.start_server(self._serve, sock=sock, limit=HEAD_BYTES_MAX, backlog=512) for sock in self._sockets
        ]
        servers = self._loop.run_until_complete(asyncio.gather(*starts))
        self._is_started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(_closed(servers))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request and its answer."""
        self._open[writer] = None
        if len(self._open) > CONNECTIONS_MAX:
            next(iter(self._open)).transport.abort()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await self._answer(head, writer.get_extra_info("peername")[0]))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # gone, silent, no HTTP, or we stop: nothing of ours failed
        except Exception:
            log.exception("probe failed")
        finally:
            writer.transport.abort()
            self._open.pop(writer, None)

    async def _answer(self, head: bytes, peer: str) -> bytes:
        try:
            request = _parsed(head, peer)
            status, kind, body = await self._page(request)
            is_head = request.method == "HEAD"
        except _Refused as refused:
            status, kind, body, is_head = refused.status, "text/plain", f"{refused}\n".encode(), False
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(["WWW-Authenticate: Bearer"] if status is HTTPStatus.UNAUTHORIZED else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if is_head else body)

    async def _page(self, request: _Request) -> tuple[HTTPStatus, str, bytes]:
        """Status, type and body. Raises: _Refused."""
        cancelled = re.fullmatch(r"/debug/requests/([^/]+)/cancel", request.path)
        pages = ("/metrics", "/healthz", "/readyz", *(["/debug/requests"] if self._debug else []))
        if request.path not in pages and not (cancelled and self._debug):
            raise _Refused(HTTPStatus.NOT_FOUND)
        if request.method not in (("POST",) if cancelled else ("GET", "HEAD")):
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, self._exposition()
        if self._debug and (cancelled or request.path == "/debug/requests"):
            return await self._debugged(self._debug, request, cancelled[1] if cancelled else None)
        reason, is_alive, is_ready = self._health()
        is_well = is_alive if request.path == "/healthz" else is_ready
        return HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{reason}\n".encode()

    async def _debugged(self, debug: Debug, request: _Request, cancelled: str | None) -> tuple[HTTPStatus, str, bytes]:
        _check(debug, request)
        if cancelled is None:
            found = await _on_loop(debug.loop, debug.requests)
            return HTTPStatus.OK, "application/json", json.dumps(found).encode() + b"\n"
        if not await _on_loop(debug.loop, lambda: debug.cancel(cancelled)):
            raise _Refused(HTTPStatus.NOT_FOUND, "no such request waits or runs")
        return HTTPStatus.OK, "text/plain", b"cancelled\n"


async def _closed(servers: list[asyncio.Server]) -> None:
    """End the servers and every connection, those just accepted too."""
    for server in servers:
        server.close()
    for _ in range(3):  # turns of the loop in which what was accepted becomes a task, and what is aborted is closed
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)


def _check(debug: Debug, request: _Request) -> None:
    """Local programs may look, admins may cancel too; where there are no callers, local programs may do both."""
    if request.is_local and (request.method != "POST" or debug.is_admin is None):
        return
    given = request.headers["authorization"]
    if debug.is_admin is None:
        raise _Refused(HTTPStatus.FORBIDDEN)
    try:
        if not given:
            raise _Refused(HTTPStatus.UNAUTHORIZED)
        if not debug.is_admin(given):
            raise _Refused(HTTPStatus.FORBIDDEN)
    except Unauthenticated:
        raise _Refused(HTTPStatus.UNAUTHORIZED) from None


async def _on_loop(loop: asyncio.AbstractEventLoop, ask: Callable[[], T]) -> T:
    """What `ask` says on another loop. Raises: _Refused, if that is held up."""

    async def asked() -> T:
        return ask()

    try:
        async with asyncio.timeout(MAIN_LOOP_SECONDS):
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked(), loop))
    except TimeoutError:
        raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server's loop is held up") from None


def _parsed(head: bytes, peer: str) -> _Request:
    """A request's first line and headers. Raises: _Refused."""
    lines = BytesIO(head)
    try:
        method, target, version = lines.readline().decode("ascii").split()
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        return _Request(method, target.partition("?")[0], parse_headers(lines), peer)
    except (ValueError, HTTPException):
        raise _Refused(HTTPStatus.BAD_REQUEST) from None


def _listening(config: Config) -> list[socket.socket]:
    """A listening socket for each address of the host, all on one port. Raises: BadConfig."""
    port, sockets, problem = config.metrics_port, list[socket.socket](), ""
    try:
        found = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            is_both = config.host == "::" and socket.has_dualstack_ipv6()
            where = (address[0], port, *address[2:])
            try:
                sockets.append(socket.create_server(where, family=family, backlog=512, dualstack_ipv6=is_both))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a version that is switched off here
                    raise
                problem = error.strerror or ""
            port = sockets[0].getsockname()[1] if sockets else port
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        for sock in sockets:
            sock.close()
        sockets = []
    if not sockets:
        raise BadConfig(f"cannot listen on {config.address(config.metrics_port)}: {problem} (--metrics-port)")
    return sockets


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
