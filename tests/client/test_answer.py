"""Every refusal of the contract as the error that a caller catches, with all that the server said (errors.py)."""

import pickle
from typing import Any

import grpc
import kleinclient
import pytest
from kleinclient import InvalidField, KleinError, QuotaExceeded, ServerError, Violation

from tests.client.conftest import refuse

REFUSALS = [
    ("INVALID_ARGUMENT", "INVALID_FIELD", "InvalidField"),
    ("INVALID_ARGUMENT", "REFERENCE_UNREADABLE", "ReferenceUnreadable"),
    ("INVALID_ARGUMENT", "REFERENCE_UNSUPPORTED", "ReferenceUnsupported"),
    ("INVALID_ARGUMENT", "REFERENCE_TOO_LARGE", "ReferenceTooLarge"),
    ("FAILED_PRECONDITION", "ALPHA_UNAVAILABLE", "AlphaUnavailable"),
    ("FAILED_PRECONDITION", "RESULT_GONE", "ResultGone"),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", "QueueFull"),
    ("RESOURCE_EXHAUSTED", "ACCELERATOR_OUT_OF_MEMORY", "AcceleratorOutOfMemory"),
    ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "QuotaExceeded"),
    ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE", "DeadlineUnreachable"),
    ("DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE", "DeadlineUnreachable"),
    ("DEADLINE_EXCEEDED", "DEADLINE_PASSED", "DeadlinePassed"),
    ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED", "IdempotencyKeyReused"),
    ("NOT_FOUND", "UNKNOWN_KEY", "UnknownKey"),
    ("UNAVAILABLE", "NOT_READY", "NotReady"),
    ("UNAVAILABLE", "DRAINING", "Draining"),
    ("UNAVAILABLE", "LEDGER_UNAVAILABLE", "LedgerUnavailable"),
    ("CANCELLED", "CANCELLED", "Cancelled"),
    ("ABORTED", "READER_STALLED", "ReaderStalled"),
    ("UNAUTHENTICATED", "UNAUTHENTICATED", "Unauthenticated"),
    ("PERMISSION_DENIED", "PERMISSION_DENIED", "PermissionDenied"),
    ("UNIMPLEMENTED", "NOT_IMPLEMENTED", "NotImplementedByServer"),
    ("INTERNAL", "INTERNAL", "ServerError"),
    ("INTERNAL", "A_REASON_OF_LATER", "ServerError"),
    ("UNAVAILABLE", "A_REASON_OF_LATER", "Unavailable"),
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
    assert caught.value.retry_after == 1.5
    assert str(caught.value) == "no (INVALID_FIELD, try again in 1.5 s)"


def test_refusal_without_details(server: Any, caller: Any) -> None:
    """What gRPC itself refuses has no reason; its words are kept."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.INTERNAL, "something of gRPC")
        yield from ()

    server.play(script)
    with pytest.raises(ServerError, match=r"something of gRPC \(INTERNAL\)") as caught:
        caller.image(server.target)
    assert (caught.value.reason, caught.value.violations, caught.value.retry_after) == ("", (), None)


def test_details_that_contradict_the_status(server: Any, caller: Any) -> None:
    """Details of another status than the call's are not believed."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x05\x12\x05other")])
        context.abort(grpc.StatusCode.INTERNAL, "the call's own words")
        yield from ()

    server.play(script)
    with pytest.raises(ServerError, match="the call's own words"):
        caller.image(server.target)


def test_quota_and_metadata(server: Any, caller: Any) -> None:
    """A quota names whose it is and which limit; what a reason says besides is a value too."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        quota = ("caller:web", "megapixels_per_minute 120")
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", quota=quota, limit="120")
        yield from ()

    server.play(script)
    with pytest.raises(QuotaExceeded) as caught:
        caller.image(server.target)
    assert caught.value.violations == (Violation("caller:web", "megapixels_per_minute 120"),)
    assert (caught.value.metadata, caught.value.request_id) == ({"limit": "120"}, "request-1")


def test_every_reason_of_the_contract_has_a_class() -> None:
    """What the contract's errors say is caught by name, without comparing words."""
    own = {name for _, reason, name in REFUSALS if not reason.startswith("A_")}
    assert own <= set(kleinclient.__all__)
    assert not own & {"KleinError", "Unavailable", "Busy"}


def test_errors_travel() -> None:
    """An error can be sent to another process, with all it knows."""
    error = QuotaExceeded(
        "no", status="RESOURCE_EXHAUSTED", reason="QUOTA_EXCEEDED", retry_after=2, metadata={"a": "b"}
    )
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (QuotaExceeded, vars(error), str(error))
