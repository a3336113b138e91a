"""What a request used, in integers, as it is billed and recorded."""

from dataclasses import dataclass
from enum import Enum

from kleinserve.core.request import Operation
from kleinserve.core.size import Size


@dataclass(frozen=True)
class Usage:
    """Billable facts and their price in millionths of a US dollar."""

    output_pixels: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int
    billable: bool
    price_version: str


class Outcome(Enum):
    """How a request ended; DELIVERED: its image was finished and recorded before it was sent or kept."""

    DELIVERED = "delivered"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True)
class UsageRecord:
    """One line of the ledger. `record_id`: a UUIDv7. Times: microseconds since 1970, UTC. `reason` "": none.

    `accelerator_microseconds`: its share, by work, of each step, prompt, reference and decode run.
    """

    record_id: str
    request_id: str
    caller: str
    client_tag: str
    model: str
    operation: Operation
    outcome: Outcome
    reason: str
    usage: Usage
    size: Size
    references: int
    steps_run: int
    accelerator_microseconds: int
    accept_microseconds: int
    end_microseconds: int
