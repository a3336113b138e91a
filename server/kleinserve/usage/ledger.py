"""What a ledger promises. Knows no database: sql.py is one, `NoLedger` is the absence of one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from kleinserve.core import Operation, UsageRecord
from kleinserve.errors import BadConfig, NotImplementedHere


class BadLedger(BadConfig):
    """The database given to `--ledger` cannot be used: one line for the operator, exit code 2."""


@dataclass(frozen=True)
class UsageTotal:
    """What one caller used by one operation."""

    caller: str
    operation: Operation
    requests: int
    images: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int


class Ledger(Protocol):
    """Usage that lasts. Methods are called on the event loop and never block it."""

    @property
    def is_up(self) -> bool:
        """Whether a commit would be tried now: while False, new requests are refused with LEDGER_UNAVAILABLE."""
        ...

    async def commit(self, *records: UsageRecord) -> None:
        """Write all `records` or none, so that they survive a power cut; the same record id again changes nothing.

        Raises: LedgerUnavailable, within a bounded time; then they may still be written later, not twice, unless
        `keep` is given their ids.
        """
        ...

    def keep(self, record: UsageRecord, instead_of: str = "") -> None:
        """Write `record`, not awaited; kept through outages, in the order of the calls.

        `instead_of`: the id of a record whose commit failed; where it was written all the same it is taken out, from
        the totals too. Whoever has read it finds `record` later in the order, with the same request id.
        """
        ...

    def note(self, record: UsageRecord) -> None:
        """Write `record` when there is room, best effort; what is dropped is counted."""
        ...

    async def totals(self, start_microseconds: int, end_microseconds: int, caller: str | None) -> list[UsageTotal]:
        """Totals over [start, end) of the records' end times; `caller` None: of everyone. Raises: LedgerUnavailable."""
        ...

    def records(
        self, start_microseconds: int, end_microseconds: int, caller: str | None, after_record_id: str
    ) -> AsyncIterator[UsageRecord]:
        """The records of [start, end) in commit order, after `after_record_id` ("": from the first).

        In bounded memory. Raises: LedgerUnavailable; InvalidField where no such record is known.
        """
        ...

    async def close(self) -> None:
        """Write what waits, then let go of the database."""
        ...


class NoLedger:
    """`--ledger none`: nothing is written; what would be read is NOT_IMPLEMENTED."""

    is_up = True

    async def commit(self, *records: UsageRecord) -> None:
        pass

    def keep(self, record: UsageRecord, instead_of: str = "") -> None:
        pass

    def note(self, record: UsageRecord) -> None:
        pass

    async def totals(self, start_microseconds: int, end_microseconds: int, caller: str | None) -> list[UsageTotal]:
        raise NotImplementedHere("this server keeps no ledger (--ledger none)")

    async def records(
        self, start_microseconds: int, end_microseconds: int, caller: str | None, after_record_id: str
    ) -> AsyncIterator[UsageRecord]:
        raise NotImplementedHere("this server keeps no ledger (--ledger none)")
        yield  # an async generator, as the protocol wants

    async def close(self) -> None:
        pass
