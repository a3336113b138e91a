"""The gRPC server: the contract's services with health and reflection on one port. Owns grpc."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from klein.v1 import image_pb2, usage_pb2

from kleinserve.config import Config
from kleinserve.errors import BadConfig, Unauthenticated
from kleinserve.identity.authenticator import Authenticator
from kleinserve.identity.certificates import Certificates
from kleinserve.identity.reload import Watched
from kleinserve.metrics import Metrics
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.transport import Context, GrpcTransport, Handlers, credentials

SERVICES = (
    image_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name,
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
)
_REFLECTION = f"/{reflection.SERVICE_NAME}/"


def tls_credentials(certificates: Watched[Certificates]) -> grpc.ServerCredentials:
    """The newest certificates at each handshake: files are read elsewhere, here only what is known is handed out."""
    given = certificates.value

    def configured(of: Certificates) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(of.key, of.chain)], of.client_ca)

    def fetch() -> Any:  # None: as before
        nonlocal given
        if certificates.value is given:
            return None
        given = certificates.value
        return configured(given)

    needs_client = given.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(configured(given), fetch, require_client_authentication=needs_client)


class GrpcServer:
    """Listens from `start` on; `health` says whether it serves."""

    def __init__(self, calls: Calls, config: Config, tls: grpc.ServerCredentials | None):
        self.health = health.aio.HealthServicer()
        self._config, self._tls = config, tls
        self._server = grpc.aio.server(
            interceptors=[_Known(calls.authenticator, calls.metrics)], options=_options(config)
        )
        self._server.add_generic_rpc_handlers((Handlers(calls),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Listen; returns the port. Raises: BadConfig, one line with the address."""
        address = self._config.address(self._config.port)
        await self.say(is_serving=False)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._tls)
        except RuntimeError as error:
            await self._server.stop(None)
            raise BadConfig(f"cannot listen on {address}") from error
        await self._server.start()
        return port

    async def say(self, *, is_serving: bool) -> None:
        """What health checks are told, of the whole and of both services."""
        kind = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self.health.set(service, kind.SERVING if is_serving else kind.NOT_SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """Tell every connection to go, let running calls end for so long, then cancel them."""
        await self._server.stop(grace_seconds)


def _options(config: Config) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", config.request_bytes_max),
        ("grpc.max_concurrent_streams", 1024),
        # Clients may ping during long steps; the defaults would send them away.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]
    if config.keepalive_seconds:  # a client that vanished without a word is noticed
        options.append(("grpc.keepalive_time_ms", round(config.keepalive_seconds * 1000)))
        # A server waits for the pong by this name; `grpc.keepalive_timeout_ms` is a client's.
        options.append(("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_seconds * 1000)))
    if config.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", round(config.max_connection_age_seconds * 1000)))
        if config.max_connection_grace_seconds:  # to gRPC 0 is at once, and its default never
            grace = round(config.max_connection_grace_seconds * 1000)
            options.append(("grpc.max_connection_age_grace_ms", grace))
    return options


class _Known(grpc.aio.ServerInterceptor):
    """Reflection needs a known caller, as every method of ours does; health does not."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics):
        self._authenticator, self._metrics = authenticator, metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(_REFLECTION):
            return handler
        answer = handler.stream_stream
        assert answer is not None

        async def answer_known(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            try:
                self._authenticator.caller(credentials(context))
            except Unauthenticated as error:
                self._metrics.unauthenticated.labels(error.why).inc()
                await GrpcTransport(context).refuse(error, uuid.uuid4().hex)
                return
            async for message in answer(messages, context):  # type: ignore[attr-defined,arg-type]
                yield message

        return grpc.stream_stream_rpc_method_handler(
            answer_known,  # grpc.aio's kind of behaviour
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
