"""Every error as the status that goes over the wire."""

from typing import TypeVar

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from kleinserve.errors import Internal, InvalidField, KleinError, QueueFull, Violation
from kleinserve.rpc.status import status, trailing

from tests import refusals

T = TypeVar("T", bound=Message)
ID = "0123456789abcdef0123456789abcdef"


def found(answer: status_pb2.Status, kind: type[T]) -> T | None:
    """The detail of this type, of which there is at most one."""
    unpacked = kind()
    packed = [detail for detail in answer.details if detail.Is(kind.DESCRIPTOR)]
    assert len(packed) <= 1
    return unpacked if packed and packed[0].Unpack(unpacked) else None


@pytest.mark.parametrize("error", refusals.EVERY, ids=refusals.name)
def test_a_status_has_the_details_of_its_kind(error: KleinError) -> None:
    """ErrorInfo comes first and always; the others where there is something to say, and together under 4 KiB."""
    answer = status(error, ID)
    assert (code_pb2.Code.Name(answer.code), answer.message) == (error.status, error.message)
    assert answer.details[0].Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    info = found(answer, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (info.reason, info.domain) == (error.reason, "klein.v1")
    assert dict(info.metadata) == {"request_id": ID} | error.metadata

    bad = found(answer, error_details_pb2.BadRequest)
    named = [(each.field, each.description) for each in bad.field_violations] if bad else []
    assert named == [(violation.field, violation.description) for violation in error.violations]
    quota = found(answer, error_details_pb2.QuotaFailure)
    told = [(each.subject, each.description) for each in quota.violations] if quota else []
    assert told == ([("caller:web", "megapixels_per_minute = 120")] if error.reason == "QUOTA_EXCEEDED" else [])
    retry = found(answer, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.ToMilliseconds() / 1000 if retry else None) == error.retry_seconds
    assert len(answer.details) == 1 + len([detail for detail in (bad, quota, retry) if detail])
    assert answer.ByteSize() < 4096


def large(field: str, description: str, count: int = 1) -> InvalidField:
    return InvalidField(*(Violation(f"{field}{i}", description) for i in range(count)))


@pytest.mark.parametrize(
    "error",
    [
        large("options.", "x" * 1_000_000),
        large("options." * 1000, "x"),
        large("options.", "x" * 300, 1000),
        large("", "", 100_000),
        large("options.", "\N{EM DASH}" * 10_000, 100),
        Internal("\N{GRINNING FACE}" * 10_000),
    ],
    ids=["description", "field", "many", "very many", "three bytes each", "message"],
)
def test_whatever_is_wrong_fits_into_4_kib(error: KleinError) -> None:
    """Long words are cut between characters, and of too many fields the first are named."""
    answer = status(error, ID)
    assert 0 < len(answer.message) <= len(error.message)
    assert answer.ByteSize() < 4096
    bad = found(answer, error_details_pb2.BadRequest)
    named = bad.field_violations if bad else []
    for violation, given in zip(named, error.violations, strict=False):
        assert given.field.startswith(violation.field)
        assert given.description.startswith(violation.description)
    assert bool(named) == bool(error.violations)


def test_every_field_of_a_request_can_be_named_at_once() -> None:
    """Of 24 violations of 64 characters none is left out."""
    bad = found(status(large("options.preview.", "x" * 64, 24), ID), error_details_pb2.BadRequest)
    assert bad is not None
    assert len(bad.field_violations) == 24


@pytest.mark.parametrize(
    ("error", "pushback"),
    [(QueueFull("full", retry_seconds=2.5), "2500"), (QueueFull("full"), None), (Internal("ours"), None)],
)
def test_the_trailing_metadata_names_the_request_and_the_delay(error: KleinError, pushback: str | None) -> None:
    """gRPC's own retries heed the delay as well."""
    sent = dict(trailing(error, ID))
    assert sent == {"klein-request-id": ID} | ({} if pushback is None else {"grpc-retry-pushback-ms": pushback})
