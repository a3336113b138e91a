"""Errors to gRPC statuses with their details: the only place that ends an RPC with anything but OK."""

from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from kleinserve.errors import KleinError

DOMAIN = "klein.v1"
# Message and details together stay under 4 KiB; ErrorInfo, RetryInfo and the types' names take about 300 bytes.
_MESSAGE_BYTES_MAX = 800
_VIOLATIONS_BYTES_MAX = 2900  # every field of a request; only unknown fields can be more
_DESCRIPTION_BYTES_MAX = 256


async def refuse(context: "grpc.aio.ServicerContext[Any, Any]", error: KleinError, request_id: str) -> None:
    """End the RPC with the error's status, message and details. Raises: grpc.aio.AbortError."""
    trailing = [("klein-request-id", request_id)]
    if error.retry_seconds is not None:
        trailing.append(("grpc-retry-pushback-ms", str(int(error.retry_seconds * 1000))))
    context.set_trailing_metadata(tuple(trailing))
    status = rpc_status.to_status(_status(error, request_id))
    trailing += [(key, value) for key, value in status.trailing_metadata]
    await context.abort(status.code, status.details, tuple(trailing))


def _status(error: KleinError, request_id: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id})
    packed = [_packed(info)]
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            described = _cut(violation.description, _DESCRIPTION_BYTES_MAX)
            bad.field_violations.add(field=_cut(violation.field, 128), description=described)
            if bad.ByteSize() > _VIOLATIONS_BYTES_MAX:
                del bad.field_violations[-1]
                break
        packed.append(_packed(bad))
    if error.retry_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_seconds * 1000))
        packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    message = _cut(error.message, _MESSAGE_BYTES_MAX)
    return status_pb2.Status(code=code_pb2.Code.Value(error.status), message=message, details=packed)


def _cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode(errors="ignore")


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
