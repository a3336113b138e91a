"""A small grpc.aio server with the real certificates, callers and reloads: what rpc does with identity, and no more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from kleinserve.errors import Unauthenticated
from kleinserve.identity.authenticator import Credentials
from kleinserve.identity.callers import WatchedCallers, watch_callers
from kleinserve.identity.certificates import CertificateFiles, Certificates, watch_certificates
from kleinserve.identity.names import names_of_auth_context
from kleinserve.identity.reload import Reloads, Watched

NEVER = 3600.0  # seconds


def configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    """As grpc wants it."""
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], root_certificates=certificates.client_ca
    )


def server_credentials(watched: Watched[Certificates]) -> grpc.ServerCredentials:
    """Credentials whose next handshake uses the newest certificates. The fetcher runs in a thread of grpc's."""
    given = watched.value

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if given is watched.value:
            return None
        given = watched.value
        return configuration(given)

    return grpc.dynamic_ssl_server_credentials(configuration(given), newest, given.client_ca is not None)


@dataclass
class Serving:
    """A running server, and what its reloads told."""

    port: int
    reloads: Reloads
    told: asyncio.Queue[str]
    service: "Service"

    @property
    def whys(self) -> list[str]:
        """Why callers were refused."""
        return self.service.whys

    async def reload(self) -> str:
        """Look for changes now, and say what the first one was."""
        self.reloads.check_now()
        return await self.told.get()


class Service(grpc.GenericRpcHandler):
    """`/test/Who` says who calls; `/test/Echo` says it, then sends back what it is sent."""

    def __init__(self, callers: WatchedCallers):
        self._callers = callers
        self.whys: list[str] = []
        self.resumed: list[bool] = []  # whether each call's connection resumed a session

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method == "/test/Who":
            return grpc.unary_unary_rpc_method_handler(self._who)
        return grpc.stream_stream_rpc_method_handler(self._echo)

    async def _caller(self, context: grpc.aio.ServicerContext) -> bytes:
        metadata = context.invocation_metadata() or ()
        authorization = tuple(str(value) for key, value in metadata if key == "authorization")
        self.resumed.append(context.auth_context().get("ssl_session_reused") == [b"true"])
        try:
            caller = self._callers.caller(Credentials(authorization, names_of_auth_context(context.auth_context())))
        except Unauthenticated as error:
            self.whys.append(error.why)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
        return caller.name.encode()

    async def _who(self, _request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return await self._caller(context)

    async def _echo(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        yield await self._caller(context)
        async for request in requests:
            yield request


@asynccontextmanager
async def serving(callers: Path, certificates: CertificateFiles) -> AsyncIterator[Serving]:
    """The server on a free port. Files are looked at only when `reload` is called."""
    watched, watched_certificates = watch_callers(callers), watch_certificates(certificates)
    told: asyncio.Queue[str] = asyncio.Queue()
    reloads = Reloads(
        [watched, watched_certificates], lambda what, outcome: told.put_nowait(f"{what} {outcome}"), NEVER
    )
    server, service = grpc.aio.server(), Service(WatchedCallers(watched))
    server.add_generic_rpc_handlers((service,))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(watched_certificates))
    await server.start()
    task = asyncio.create_task(reloads.run())
    try:
        yield Serving(port, reloads, told, service)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(0)
