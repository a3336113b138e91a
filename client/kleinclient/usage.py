"""What images cost: of one image, in total, record by record. Money is integers of millionths of a US dollar."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from klein.v1 import usage_pb2 as pb

from kleinclient.names import word


@dataclass(frozen=True)
class Usage:
    """Billable facts of one image and their price. A replay and an estimate are not billable."""

    output_pixels: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int
    billable: bool
    price_version: str

    def __str__(self) -> str:
        references = f" + {self.reference_megapixels} reference MP" if self.reference_megapixels else ""
        version = f" ({self.price_version})" if self.price_version else ""
        billed = "" if self.billable else ", not billed"
        return f"{self.output_megapixels} MP{references}, {dollars(self.cost_microusd)}{version}{billed}"


@dataclass(frozen=True)
class UsageTotal:
    """What one caller's requests of one operation ("generate", "edit") came to."""

    caller: str
    operation: str
    requests: int
    images: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int


@dataclass(frozen=True)
class UsageRecord:
    """One finished request. `outcome`: "delivered", "cancelled", "deadline", "failed" or "refused"."""

    record_id: str
    request_id: str
    caller: str
    client_tag: str
    model: str
    operation: str
    outcome: str
    reason: str
    usage: Usage
    width: int
    height: int
    references: int
    steps_run: int
    accelerator_microseconds: int
    accept_time: datetime
    end_time: datetime


def dollars(microusd: int) -> str:
    """The price to the last millionth: 14000 is "$0.014000"."""
    return f"${microusd // 1_000_000:,}.{microusd % 1_000_000:06}"


def ask_totals(start: datetime, end: datetime, caller: str) -> pb.GetUsageRequest:
    return pb.GetUsageRequest(start_time=_timestamp("start", start), end_time=_timestamp("end", end), caller=caller)


def ask_records(start: datetime, end: datetime, caller: str, after_record_id: str) -> pb.ListUsageRecordsRequest:
    return pb.ListUsageRecordsRequest(
        start_time=_timestamp("start", start),
        end_time=_timestamp("end", end),
        caller=caller,
        after_record_id=after_record_id,
    )


def usage(message: pb.Usage) -> Usage:
    return Usage(
        message.output_pixels,
        message.output_megapixels,
        message.reference_megapixels,
        message.cost_microusd,
        message.billable,
        message.price_version,
    )


def totals(messages: Iterable[pb.UsageTotal]) -> tuple[UsageTotal, ...]:
    return tuple(
        UsageTotal(
            message.caller,
            word(pb.Operation, message.operation),
            message.requests,
            message.images,
            message.output_megapixels,
            message.reference_megapixels,
            message.cost_microusd,
        )
        for message in messages
    )


def record(message: pb.UsageRecord) -> UsageRecord:
    return UsageRecord(
        message.record_id,
        message.request_id,
        message.caller,
        message.client_tag,
        message.model,
        word(pb.Operation, message.operation),
        word(pb.Outcome, message.outcome),
        message.reason,
        usage(message.usage),
        message.width,
        message.height,
        message.references,
        message.steps_run,
        message.accelerator_microseconds,
        message.accept_time.ToDatetime(UTC),
        message.end_time.ToDatetime(UTC),
    )


def _timestamp(name: str, moment: datetime) -> Timestamp:
    """The moment for the wire. Raises: ValueError for a time without a zone, whose meaning would be a guess."""
    if moment.tzinfo is None:
        raise ValueError(f"{name}: {moment.isoformat()} has no time zone")
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
