"""Errors to statuses with their details. Knows no transport: gRPC and gRPC-Web send the same."""

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from kleinserve.errors import KleinError, QuotaExceeded

DOMAIN = "klein.v1"
_NAMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
CODES = {name: number for number, name in enumerate(_NAMES)}  # numbers by gRPC's names
# Message and details together stay under 4 KiB; ErrorInfo, RetryInfo and the types' names take about 300 bytes.
_MESSAGE_BYTES_MAX = 800
_VIOLATIONS_BYTES_MAX = 2900  # every field of a request; only unknown fields can be more
_DESCRIPTION_BYTES_MAX = 256


class Answered(KleinError):
    """What another server answered to a call that was passed on to it, as it came."""

    def __init__(self, answer: status_pb2.Status):
        super().__init__(answer.message)
        self.answer = answer
        self.status = _NAMES[answer.code]
        for detail in answer.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                self.reason = info.reason
            if detail.Unpack(retry):
                self.retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9


def trailing(error: KleinError, request_id: str) -> list[tuple[str, str]]:
    """The trailing metadata of a refusal beside its details."""
    sent = [("klein-request-id", request_id)]
    if error.retry_seconds is not None:
        sent.append(("grpc-retry-pushback-ms", str(int(error.retry_seconds * 1000))))
    return sent


def status(error: KleinError, request_id: str) -> status_pb2.Status:
    """Code, message and details of a refusal: together under 4 KiB."""
    if isinstance(error, Answered):
        return error.answer
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id} | error.metadata
    )
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
    if isinstance(error, QuotaExceeded):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=f"caller:{error.caller}", description=f"{error.limit} = {error.value}")
        packed.append(_packed(quota))
    if error.retry_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_seconds * 1000))
        packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    message = _cut(error.message, _MESSAGE_BYTES_MAX)
    return status_pb2.Status(code=CODES[error.status], message=message, details=packed)


def _cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode(errors="ignore")


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
