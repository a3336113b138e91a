"""Counts every RPC of our services under go-grpc-prometheus's names. Knows no messages."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from kleinserve.metrics import Metrics

_OURS = "/klein.v1."
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Counting(grpc.aio.ServerInterceptor):
    """Wraps the handlers of klein.v1; health and reflection are not counted."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            counted = self._counted(handler.unary_unary, "unary", method)
            return grpc.unary_unary_rpc_method_handler(counted, **codecs)
        assert handler.unary_stream is not None
        counted = self._counted(handler.unary_stream, "server_stream", method)
        return grpc.unary_stream_rpc_method_handler(counted, **codecs)

    def _counted(self, behaviour: Any, kind: str, method: str) -> Any:
        async def counted(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
            started, code = time.monotonic(), "OK"
            self._metrics.rpc_started(kind, method)
            try:
                return await behaviour(request, context)
            except BaseException:
                code = "CANCELLED" if context.cancelled() else _name(context.code())
                raise
            finally:
                self._metrics.rpc_handled(kind, method, code, time.monotonic() - started)

        return counted


def _name(code: Any) -> str:
    return _CODES[code] if isinstance(code, int) else str(code.name)
