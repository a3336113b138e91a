"""Every refusal of the contract as the error that a caller catches, with all that the server said."""

from typing import Any

import grpc
import kleinclient
import pytest
from kleinclient import InvalidField, KleinError, ServerError, Violation

from tests.client.conftest import refuse

REFUSALS = [
    ("INVALID_ARGUMENT", "INVALID_FIELD", "InvalidField"),
    ("INVALID_ARGUMENT", "REFERENCE_UNREADABLE", "RefusedReference"),
    ("INVALID_ARGUMENT", "REFERENCE_UNSUPPORTED", "RefusedReference"),
    ("INVALID_ARGUMENT", "REFERENCE_TOO_LARGE", "RefusedReference"),
    ("FAILED_PRECONDITION", "ALPHA_UNAVAILABLE", "AlphaUnavailable"),
    ("FAILED_PRECONDITION", "RESULT_GONE", "ResultGone"),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", "QueueFull"),
    ("RESOURCE_EXHAUSTED", "ACCELERATOR_OUT_OF_MEMORY", "AcceleratorOutOfMemory"),
    ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "QuotaExceeded"),
    ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE", "DeadlineUnreachable"),
    ("DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE", "DeadlineUnreachable"),
    ("DEADLINE_EXCEEDED", "DEADLINE_PASSED", "DeadlineExceeded"),
    ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED", "KeyReused"),
    ("NOT_FOUND", "UNKNOWN_KEY", "UnknownKey"),
    ("UNAVAILABLE", "NOT_READY", "NotReady"),
    ("UNAVAILABLE", "DRAINING", "Draining"),
    ("UNAVAILABLE", "LEDGER_UNAVAILABLE", "Unavailable"),
    ("CANCELLED", "CANCELLED", "Cancelled"),
    ("ABORTED", "READER_STALLED", "ReaderStalled"),
    ("UNAUTHENTICATED", "UNAUTHENTICATED", "Unauthenticated"),
    ("PERMISSION_DENIED", "PERMISSION_DENIED", "PermissionDenied"),
    ("UNIMPLEMENTED", "NOT_IMPLEMENTED", "NotImplementedByServer"),
    ("INTERNAL", "INTERNAL", "ServerError"),
    ("INTERNAL", "A_REASON_OF_LATER", "ServerError"),
    ("OUT_OF_RANGE", "A_REASON_OF_LATER", "KleinError"),
]


@pytest.mark.parametrize(("status", "reason", "name"), REFUSALS)
def test_refusals(server: Any, caller: Any, status: str, reason: str, name: str) -> None:
    """Status and reason decide the class; reasons that this client does not know fall back to the status."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, grpc.StatusCode[status], reason, "what is wrong")
        yield from ()

    server.play(script)
    with pytest.raises(KleinError, match="what is wrong") as caught:
        caller.image(server.target)
    error = caught.value
    assert type(error) is getattr(kleinclient, name)
    assert (error.status, error.reason, error.message) == (status, reason, "what is wrong")
    assert error.request_id == "request-1"


def test_details(server: Any, caller: Any) -> None:
    """Bad fields and the delay are values, not words to parse."""
    fields = {"options.width": "100 is not a multiple of 16", "prompt": "is blank"}

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields=fields, retry_seconds=1.5)
        yield from ()

    server.play(script)
    with pytest.raises(InvalidField) as caught:
        caller.image(server.target)
    assert caught.value.violations == tuple(Violation(name, words) for name, words in fields.items())
    assert caught.value.retry_delay == 1.5
    assert str(caught.value) == "no (INVALID_FIELD, try again in 1.5 s)"


def test_refusal_without_details(server: Any, caller: Any) -> None:
    """What gRPC itself refuses has no reason; its words are kept."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.INTERNAL, "something of gRPC")
        yield from ()

    server.play(script)
    with pytest.raises(ServerError, match=r"something of gRPC \(INTERNAL\)") as caught:
        caller.image(server.target)
    assert (caught.value.reason, caught.value.violations, caught.value.retry_delay) == ("", (), None)


def test_details_that_contradict_the_status(server: Any, caller: Any) -> None:
    """Details of another status than the call's are not believed."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x05\x12\x05other")])
        context.abort(grpc.StatusCode.INTERNAL, "the call's own words")
        yield from ()

    server.play(script)
    with pytest.raises(ServerError, match="the call's own words"):
        caller.image(server.target)
