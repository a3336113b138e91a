"""A failed RPC as a typed error: google.rpc.Status details where the server sent them, gRPC's own words where not."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from kleinclient import errors
from kleinclient.errors import KleinError, Violation

BY_REASON: dict[str, type[KleinError]] = {
    "INVALID_FIELD": errors.InvalidField,
    "REFERENCE_UNREADABLE": errors.RefusedReference,
    "REFERENCE_UNSUPPORTED": errors.RefusedReference,
    "REFERENCE_TOO_LARGE": errors.RefusedReference,
    "ALPHA_UNAVAILABLE": errors.AlphaUnavailable,
    "RESULT_GONE": errors.ResultGone,
    "QUEUE_FULL": errors.QueueFull,
    "ACCELERATOR_OUT_OF_MEMORY": errors.AcceleratorOutOfMemory,
    "QUOTA_EXCEEDED": errors.QuotaExceeded,
    "DEADLINE_UNREACHABLE": errors.DeadlineUnreachable,
    "NOT_READY": errors.NotReady,
    "DRAINING": errors.Draining,
}
BY_STATUS: dict[str, type[KleinError]] = {
    "INVALID_ARGUMENT": errors.InvalidField,
    "RESOURCE_EXHAUSTED": errors.Busy,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "ALREADY_EXISTS": errors.KeyReused,
    "NOT_FOUND": errors.UnknownKey,
    "UNAVAILABLE": errors.Unavailable,
    "CANCELLED": errors.Cancelled,
    "ABORTED": errors.ReaderStalled,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "UNIMPLEMENTED": errors.NotImplementedByServer,
    "INTERNAL": errors.ServerError,
}


def error(failure: grpc.RpcError, target: str) -> KleinError:
    """What `failure` of a call to `target` means to the caller."""
    status = failure.code().name
    details = _details(failure)
    if not details:
        return _without_details(status, failure.details() or "", target)
    info = details.get("ErrorInfo")
    reason = info.reason if info else ""
    retry = details.get("RetryInfo")
    request = details.get("BadRequest")
    return BY_REASON.get(reason, BY_STATUS.get(status, KleinError))(
        failure.details() or status,
        status=status,
        reason=reason,
        retry_delay=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
        violations=tuple(Violation(v.field, v.description) for v in request.field_violations) if request else (),
        request_id=info.metadata["request_id"] if info and "request_id" in info.metadata else "",
    )


def _details(failure: grpc.RpcError) -> dict[str, Any]:
    """The details by message name; none if there are none, or they contradict the status."""
    try:
        answer = rpc_status.from_call(failure)
    except ValueError:
        return {}
    found = {}
    for packed in answer.details if answer else ():
        name = packed.TypeName().removeprefix("google.rpc.")
        if name in ("ErrorInfo", "RetryInfo", "BadRequest"):
            found[name] = getattr(error_details_pb2, name)()
            packed.Unpack(found[name])
    return found


def _without_details(status: str, words: str, target: str) -> KleinError:
    """A failure that no klein server wrote: the network, a proxy, gRPC on either side."""
    if status == "UNAVAILABLE":
        return errors.ServerUnreachable(f"no klein server answers at {target}: {_last_cause(words)}", status=status)
    if status == "UNIMPLEMENTED":
        message = f"what answers at {target} does not offer this call: {words}"
        return errors.NotImplementedByServer(message, status=status)
    if status == "DEADLINE_EXCEEDED":
        return errors.DeadlineExceeded("the deadline passed before the answer was complete", status=status)
    if status == "CANCELLED":
        return errors.Cancelled("the request was cancelled", status=status)
    return BY_STATUS.get(status, KleinError)(words or status, status=status)


def _last_cause(words: str) -> str:
    """gRPC nests causes with colons, outermost first: the last one is what a person can act on."""
    return words.rsplit(": ", 1)[-1].rstrip("]") or "the connection failed"
