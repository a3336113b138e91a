"""Messages of the usage service: periods in, totals and records out."""

from google.protobuf.timestamp_pb2 import Timestamp
from klein.v1 import usage_pb2

from kleinserve.core import UsageRecord
from kleinserve.errors import InvalidField, Violation
from kleinserve.rpc import events, requests
from kleinserve.usage.ledger import UsageTotal


def period(message: usage_pb2.GetUsageRequest | usage_pb2.ListUsageRecordsRequest) -> tuple[int, int]:
    """Its [start, end) in microseconds since 1970. Raises: InvalidField."""
    violations = list(requests.unknown(message))
    for field in ("start_time", "end_time"):
        if not message.HasField(field):
            violations.append(Violation(field, "required"))
        elif not _is_valid(getattr(message, field)):
            violations.append(Violation(field, "out of range; years 1 to 9999, nanos 0 to 999,999,999"))
    if not violations and _microseconds(message.end_time) < _microseconds(message.start_time):
        text = "the end lies before the start"
        violations += [Violation("start_time", text), Violation("end_time", text)]
    if violations:
        raise InvalidField(*violations)
    return _microseconds(message.start_time), _microseconds(message.end_time)


def total(used: UsageTotal) -> usage_pb2.UsageTotal:
    return usage_pb2.UsageTotal(
        caller=used.caller,
        operation=f"OPERATION_{used.operation.name}",
        requests=used.requests,
        images=used.images,
        output_megapixels=used.output_megapixels,
        reference_megapixels=used.reference_megapixels,
        cost_microusd=used.cost_microusd,
    )


def record(kept: UsageRecord) -> usage_pb2.UsageRecord:
    return usage_pb2.UsageRecord(
        record_id=kept.record_id,
        request_id=kept.request_id,
        caller=kept.caller,
        client_tag=kept.client_tag,
        model=kept.model,
        operation=f"OPERATION_{kept.operation.name}",
        outcome=f"OUTCOME_{kept.outcome.name}",
        reason=kept.reason,
        usage=events.usage(kept.usage),
        width=kept.size.width,
        height=kept.size.height,
        references=kept.references,
        steps_run=kept.steps_run,
        accelerator_microseconds=kept.accelerator_microseconds,
        accept_time=_timestamp(kept.accept_microseconds),
        end_time=_timestamp(kept.end_microseconds),
    )


def _is_valid(time: Timestamp) -> bool:
    return -62_135_596_800 <= time.seconds < 253_402_300_800 and 0 <= time.nanos < 1_000_000_000


def _microseconds(time: Timestamp) -> int:
    """Rounded up: a record is in [start, end) exactly where its microsecond is."""
    return time.seconds * 1_000_000 + -(-time.nanos // 1000)


def _timestamp(microseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made
