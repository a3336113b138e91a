"""Periods in; totals and records out, field by field."""

from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from klein.v1 import usage_pb2
from kleinserve.core import Operation, Outcome, Size
from kleinserve.errors import InvalidField
from kleinserve.rpc import periods
from kleinserve.usage.ledger import UsageTotal

from tests.usage.some import PAID, record

FIRST, LAST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999
EPOCH = Timestamp()


def asked(start: Timestamp | None, end: Timestamp | None) -> usage_pb2.GetUsageRequest:
    return usage_pb2.GetUsageRequest(start_time=start, end_time=end)


@pytest.mark.parametrize(
    ("start", "end", "bounds"),
    [
        (EPOCH, Timestamp(seconds=1), (0, 1_000_000)),
        (EPOCH, EPOCH, (0, 0)),
        (Timestamp(nanos=1), Timestamp(nanos=1000), (1, 1)),
        (Timestamp(nanos=999), Timestamp(nanos=1001), (1, 2)),
        (Timestamp(seconds=-1, nanos=999_999_001), Timestamp(seconds=1), (0, 1_000_000)),
        (Timestamp(seconds=FIRST), Timestamp(seconds=LAST, nanos=999_999_999), (FIRST * 10**6, (LAST + 1) * 10**6)),
    ],
)
def test_a_period_is_in_microseconds_rounded_up(start: Timestamp, end: Timestamp, bounds: tuple[int, int]) -> None:
    """So a record lies in [start, end) exactly where its microsecond does."""
    assert periods.period(asked(start, end)) == bounds


@pytest.mark.parametrize(
    ("start", "end", "fields"),
    [
        (None, None, ["start_time", "end_time"]),
        (EPOCH, None, ["end_time"]),
        (Timestamp(seconds=FIRST - 1), Timestamp(seconds=LAST + 1), ["start_time", "end_time"]),
        (Timestamp(nanos=-1), EPOCH, ["start_time"]),
        (EPOCH, Timestamp(nanos=1_000_000_000), ["end_time"]),
        (Timestamp(seconds=2), Timestamp(seconds=1), ["start_time", "end_time"]),
    ],
)
def test_what_is_no_period_names_its_bounds(start: Timestamp | None, end: Timestamp | None, fields: list[str]) -> None:
    """A bound is required, in years 1 to 9999, and the end not before the start."""
    with pytest.raises(InvalidField) as caught:
        periods.period(asked(start, end))
    assert [violation.field for violation in caught.value.violations] == fields


def test_unknown_fields_are_refused_with_the_rest() -> None:
    """Honour or refuse, here too."""
    unknown = usage_pb2.ListUsageRecordsRequest.FromString(b"\x98\x06\x01")  # field 99
    with pytest.raises(InvalidField) as caught:
        periods.period(unknown)
    assert [violation.field for violation in caught.value.violations] == ["#99", "start_time", "end_time"]


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("operation", Operation)
def test_a_record_has_all_that_was_kept(operation: Operation, outcome: Outcome) -> None:
    """Each enumeration's name is the wire's, and times are exact to the microsecond."""
    kept = record(
        operation=operation,
        outcome=outcome,
        reason="QUEUE_FULL",
        size=Size(96, 64),
        references=2,
        usage=replace(PAID, reference_megapixels=2),
        accept_microseconds=1_700_000_000_000_001,
    )
    message = periods.record(kept)
    simple = ("record_id", "request_id", "caller", "client_tag", "model", "reason", "references", "steps_run")
    for field in (*simple, "accelerator_microseconds"):
        assert getattr(message, field) == getattr(kept, field), field
    assert (message.width, message.height) == (96, 64)
    assert usage_pb2.Operation.Name(message.operation) == f"OPERATION_{operation.name}"
    assert usage_pb2.Outcome.Name(message.outcome) == f"OUTCOME_{outcome.name}"
    assert message.accept_time.ToMicroseconds() == kept.accept_microseconds
    assert message.end_time.ToMicroseconds() == kept.end_microseconds
    for name, value in vars(kept.usage).items():
        assert getattr(message.usage, name) == value, name


def test_a_total_has_all_that_was_summed() -> None:
    """Field by field; nothing is left at its zero."""
    used = UsageTotal("web", Operation.EDIT, 5, 4, 3, 2, 54_000)
    message = periods.total(used)
    assert usage_pb2.Operation.Name(message.operation) == "OPERATION_EDIT"
    assert {name: getattr(message, name) for name in vars(used) if name != "operation"} == {
        name: value for name, value in vars(used).items() if name != "operation"
    }
    assert {field.name for field in message.DESCRIPTOR.fields} == set(vars(used))
