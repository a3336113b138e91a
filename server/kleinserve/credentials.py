"""Who calls, and the certificates, for every port of a server. Loads grpc, not torch."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kleinserve.config import Config
from kleinserve.identity.authenticator import Authenticator, Credentials, Everyone
from kleinserve.identity.callers import WatchedCallers, watch_callers
from kleinserve.identity.certificates import CertificateFiles, Certificates, serving_context, watch_certificates
from kleinserve.identity.reload import Reloads, Watched
from kleinserve.metrics import Metrics
from kleinserve.rpc.forward import Trust, channel_credentials
from kleinserve.rpc.server import tls_credentials


class ServerCredentials:
    """Who calls, and the certificates: files that are read again when they change. Raises: BadConfig."""

    def __init__(self, config: Config, metrics: Metrics):
        watched: list[Watched[Any]] = []
        self.authenticator: Authenticator = Everyone()
        self.certificates: Watched[Certificates] | None = None
        if config.callers is not None:
            watched.append(callers := watch_callers(Path(config.callers)))
            self.authenticator = WatchedCallers(callers)
        if config.tls_certificate is not None and config.tls_key is not None:
            client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
            files = CertificateFiles(Path(config.tls_certificate), Path(config.tls_key), client_ca)
            self.certificates = watch_certificates(files)
            watched.append(self.certificates)
        self._knows_callers = config.callers is not None
        self._replicas_ca = config.replicas_ca
        self._reloads = Reloads(watched, lambda what, outcome: metrics.reloads.labels(what, outcome).inc())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._reloads.run())

    def check_now(self) -> None:
        self._reloads.check_now()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def is_admin(self) -> Callable[[str], bool] | None:
        """Whether the value of an `authorization` header is an admin's; None: there are no callers."""
        if not self._knows_callers:
            return None
        return lambda authorization: self.authenticator.caller(Credentials((authorization,))).is_admin

    def grpc_credentials(self) -> Any:
        """For the gRPC port; None: plain text."""
        return None if self.certificates is None else tls_credentials(self.certificates)

    def replica_credentials(self) -> Trust | None:
        """For connections to other servers, by the newest certificates; None: plain text."""
        if self.certificates is None:
            return None
        ca = None if self._replicas_ca is None else self._replicas_ca.read_bytes()
        return channel_credentials(self.certificates.value, ca)

    def web_context(self) -> ssl.SSLContext | None:
        """For the web port; None: plain text."""
        certificates = self.certificates
        return None if certificates is None else serving_context(lambda: certificates.value)
