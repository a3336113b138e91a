"""A failed RPC as a typed error: google.rpc.Status details where the server sent them, gRPC's own words where not."""

import re
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from kleinclient import errors
from kleinclient.errors import KleinError, Violation

BY_REASON: dict[str, type[KleinError]] = {
    "INVALID_FIELD": errors.InvalidField,
    "REFERENCE_UNREADABLE": errors.ReferenceUnreadable,
    "REFERENCE_UNSUPPORTED": errors.ReferenceUnsupported,
    "REFERENCE_TOO_LARGE": errors.ReferenceTooLarge,
    "ALPHA_UNAVAILABLE": errors.AlphaUnavailable,
    "RESULT_GONE": errors.ResultGone,
    "QUEUE_FULL": errors.QueueFull,
    "ACCELERATOR_OUT_OF_MEMORY": errors.AcceleratorOutOfMemory,
    "QUOTA_EXCEEDED": errors.QuotaExceeded,
    "DEADLINE_UNREACHABLE": errors.DeadlineUnreachable,
    "DEADLINE_PASSED": errors.DeadlinePassed,
    "NOT_READY": errors.NotReady,
    "DRAINING": errors.Draining,
    "LEDGER_UNAVAILABLE": errors.LedgerUnavailable,
}
BY_STATUS: dict[str, type[KleinError]] = {
    "INVALID_ARGUMENT": errors.InvalidField,
    "RESOURCE_EXHAUSTED": errors.Busy,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "ALREADY_EXISTS": errors.IdempotencyKeyReused,
    "NOT_FOUND": errors.UnknownKey,
    "UNAVAILABLE": errors.Unavailable,
    "CANCELLED": errors.Cancelled,
    "ABORTED": errors.ReaderStalled,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "UNIMPLEMENTED": errors.NotImplementedByServer,
    "INTERNAL": errors.ServerError,
}
DETAILS = ("ErrorInfo", "RetryInfo", "BadRequest", "QuotaFailure")
# How gRPC begins what it says of a connection that was never made; of one that broke it says other things.
NEVER_CONNECTED = re.compile(r"failed to connect|errors? resolving|resolution failed|empty address list", re.IGNORECASE)
# What gRPC says of a connection that could not be made, and what that means to a person.
MEANINGS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of an authority that is trusted here",
    "Hostname Verification": "its certificate is for another name",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "first frame": "it does not speak gRPC",
    "Socket closed": "it closed the connection at once; it may want TLS, or a client certificate",
}


def error(failure: grpc.RpcError, target: str) -> KleinError:
    """What `failure` of a call to `target` means to the caller."""
    status = failure.code().name
    details = _details(failure)
    info = details.get("ErrorInfo")
    if info is None:
        return _without_details(status, failure.details() or "", target)
    retry = details.get("RetryInfo")
    return BY_REASON.get(info.reason, BY_STATUS.get(status, KleinError))(
        failure.details() or status,
        status=status,
        reason=info.reason,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
        violations=_violations(details),
        request_id=info.metadata.get("request_id", ""),
        metadata={name: value for name, value in info.metadata.items() if name != "request_id"},
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
        if name in DETAILS:
            found[name] = getattr(error_details_pb2, name)()
            packed.Unpack(found[name])
    return found


def _violations(details: dict[str, Any]) -> tuple[Violation, ...]:
    fields = details["BadRequest"].field_violations if "BadRequest" in details else ()
    quotas = details["QuotaFailure"].violations if "QuotaFailure" in details else ()
    return (
        *(Violation(bad.field, bad.description) for bad in fields),
        *(Violation(full.subject, full.description) for full in quotas),
    )


def _without_details(status: str, words: str, target: str) -> KleinError:
    """A failure that no klein server wrote: the network, a proxy, gRPC on either side."""
    match status:
        case "UNAVAILABLE" if NEVER_CONNECTED.search(words):
            cause = next((said for sign, said in MEANINGS.items() if sign in words), "") or _last_cause(words)
            return errors.ServerUnreachable(f"no klein server answers at {target}: {cause}", status=status)
        case "UNAVAILABLE" | "CANCELLED":
            return errors.ConnectionLost(f"the connection to {target} was lost: {_last_cause(words)}", status=status)
        case "UNIMPLEMENTED":
            message = f"what answers at {target} does not offer this call: {words}"
            return errors.NotImplementedByServer(message, status=status)
        case "DEADLINE_EXCEEDED":
            return errors.DeadlineExceeded("the deadline passed before the answer was complete", status=status)
        case "RESOURCE_EXHAUSTED" if sizes := re.search(
            r"(?:sent|received) message larger than max (\(.*\))", words, re.I
        ):
            if re.match(r"client: received", words, re.I):
                message = f"the answer is larger than this client takes {sizes[1]}"
                return errors.BrokenStream(message, status=status)
            return errors.RequestTooLarge(f"the request is larger than a server takes {sizes[1]} bytes", status=status)
    return BY_STATUS.get(status, KleinError)(words or status, status=status)


def _last_cause(words: str) -> str:
    """gRPC nests causes with colons, outermost first: the last one is what a person can act on."""
    return words.rsplit(": ", 1)[-1].rstrip("]") or "the connection failed"
