"""grpc.aio as a transport of calls. Owns grpc."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from kleinserve.errors import KleinError
from kleinserve.identity.authenticator import Credentials
from kleinserve.identity.names import names_of_auth_context
from kleinserve.rpc.call import ReaderGone
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.status import status, trailing

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GrpcTransport:
    """One RPC of grpc.aio."""

    def __init__(self, context: Context):
        self._context = context
        self._given = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]

    @property
    def peer(self) -> str:
        return str(self._context.peer())

    @property
    def metadata(self) -> Mapping[str, str]:
        return dict(self._given)

    @property
    def credentials(self) -> Credentials:
        return credentials(self._context)

    def seconds_left(self) -> float | None:
        left = self._context.time_remaining()
        return None if left is None else float(left)

    async def begin(self, metadata: Mapping[str, str]) -> None:
        await self._context.send_initial_metadata(tuple(metadata.items()))

    async def write(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.InternalError:  # cancelled, or past its deadline, while it was blocked
            raise ReaderGone from None

    async def refuse(self, error: KleinError, request_id: str) -> None:
        sent = trailing(error, request_id)
        self._context.set_trailing_metadata(tuple(sent))
        made = rpc_status.to_status(status(error, request_id))
        sent += [(key, value) for key, value in made.trailing_metadata]
        try:
            await self._context.abort(made.code, made.details, tuple(sent))
        except grpc.aio.AbortError as aborted:  # gRPC keeps it and raises it itself when the handler has returned:
            aborted.__traceback__ = None  # passed through our frames it would hold them, and they the request


def credentials(context: Context) -> Credentials:
    """What the connection and the call say of who calls."""
    given = context.invocation_metadata() or ()
    tokens = tuple(str(value) for key, value in given if key == "authorization")
    return Credentials(tokens, names_of_auth_context(context.auth_context()))


class Handlers(grpc.GenericRpcHandler):
    """Gives every call of the contract to `calls` as bytes: what cannot be parsed is refused like everything else.

    A single message is a stream of one: on the wire they are the same, and of a stream gRPC keeps no message until the
    call ends; read by the context, not by the iterator, which is a cycle of references and keeps the last one after it.
    """

    def __init__(self, calls: Calls):
        self._calls = calls

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        path = str(handler_call_details.method)
        if path not in self._calls.methods:
            return None

        async def behave(_: AsyncIterator[bytes], context: Context) -> None:
            message = await context.read()
            body = [] if message is grpc.aio.EOF else [message]
            del message
            await self._calls.serve(path, body, GrpcTransport(context))

        return grpc.stream_stream_rpc_method_handler(behave)  # written, not yielded
