"""The web port: uvicorn on this event loop, with the same certificates and callers as gRPC."""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from kleinserve.config import Config
from kleinserve.errors import BadConfig
from kleinserve.identity.names import names_of_peer_certificate
from kleinserve.web.http import CONNECTION

CONNECTIONS_MAX = 512  # more are closed at once: what strangers hold of files and memory has an end
IDLE_SECONDS = 75  # a connection without a request, or with an answer that nobody reads on, ends after this
# Of an answer beyond what the network takes, here and in the kernel: that one would hold 4 MiB, and tell of its room in
# leaps of 1 MiB. So a slow reader's patience is counted by what it takes itself.
UNSENT_BYTES = 16 * 1024


class WebServer:
    """Listens from `start` on."""

    def __init__(self, app: ASGIApp, config: Config, tls: ssl.SSLContext | None):
        self._config = config
        self._server = _Server(
            uvicorn.Config(
                app,
                http=partial(_Connection, config.keepalive_seconds, config.keepalive_timeout_seconds),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_SECONDS,
                ssl_context_factory=None if tls is None else lambda *_: tls,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; returns the port. Raises: BadConfig, one line with the address."""
        assert self._config.web_port is not None
        listening = _listening(self._config.host, self._config.web_port)
        self._task = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  # it has nothing to await
            await asyncio.sleep(0.01)
        return int(listening.getsockname()[1])

    async def stop(self, grace_seconds: float) -> None:
        """Take no new connections, let running answers end for so long, then cut them."""
        if self._task is None:
            return
        self._server.should_exit = True
        cutting = asyncio.get_running_loop().call_later(grace_seconds, self._cut)
        await self._task
        cutting.cancel()

    def _cut(self) -> None:
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=host == "::")
    except OSError as error:
        raise BadConfig(f"cannot listen on {host}:{port}: {error.strerror}") from error


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the application's."""
        yield


class _Connection(H11Protocol):
    """A connection as requests find it in their state (http.Connection)."""

    def __init__(self, keepalive_seconds: float, timeout_seconds: float, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self._keepalive_seconds, self._timeout_seconds = keepalive_seconds, timeout_seconds
        self.names: tuple[str, ...] = ()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self.names = names_of_peer_certificate(transport.get_extra_info("peercert"))
        self.app_state = {**self.app_state, CONNECTION: self}
        self.loop.call_later(IDLE_SECONDS, self._cut, None, 0)
        transport.set_write_buffer_limits(UNSENT_BYTES)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # not everywhere
            connected = transport.get_extra_info("socket")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if self._keepalive_seconds:
            _ask_whether_it_lives(transport.get_extra_info("socket"), self._keepalive_seconds, self._timeout_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.loop.call_later(IDLE_SECONDS, self._cut, self.cycle, self.transport.get_write_buffer_size())

    def hurry(self) -> None:
        self.flow.resume_writing()

    def abort(self) -> None:
        self.transport.abort()

    def _cut(self, last: RequestResponseCycle | None, unread_bytes: int) -> None:
        """Nothing was asked since `last`, and of its answer nothing was read since, or no request ever came."""
        left = self.transport.get_write_buffer_size()
        if self.cycle is not last or not (last is None or left):
            return
        if last is not None and left < unread_bytes:
            self.loop.call_later(IDLE_SECONDS, self._cut, last, left)
        else:
            self.transport.abort()


def _ask_whether_it_lives(connected: socket.socket, after_seconds: float, timeout_seconds: float) -> None:
    """A peer that vanished without a word is noticed, as with gRPC."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", after_seconds), ("TCP_KEEPINTVL", timeout_seconds)):
        if hasattr(socket, option):  # not everywhere
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), max(1, math.ceil(seconds)))
    if hasattr(socket, "TCP_KEEPCNT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
