"""The web port: uvicorn on this event loop, with the same certificates and callers as gRPC."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from kleinserve.config import Config
from kleinserve.errors import BadConfig
from kleinserve.identity.names import names_of_peer_certificate
from kleinserve.web.http import NAMES


class WebServer:
    """Listens from `start` on. Raises: BadConfig, one line with the address."""

    def __init__(self, app: ASGIApp, config: Config, tls: ssl.SSLContext | None):
        self._config = config
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Known,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                ssl_context_factory=None if tls is None else lambda *_: tls,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; returns the port."""
        assert self._config.web_port is not None
        listening = _listening(self._config.host, self._config.web_port)
        self._task = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  # it has nothing to await
            await asyncio.sleep(0.01)
        return int(listening.getsockname()[1])

    async def stop(self, grace_seconds: float) -> None:
        """Take no new connections, let running answers end for so long."""
        self._server.should_exit = True
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        if self._task is not None:
            await self._task


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise BadConfig(f"cannot listen on {host}:{port}: {error.strerror}") from error


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the application's."""
        yield


class _Known(H11Protocol):
    """Puts the names of the client's certificate where requests find them."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        names = names_of_peer_certificate(transport.get_extra_info("peercert"))
        self.app_state = {**self.app_state, NAMES: names}
