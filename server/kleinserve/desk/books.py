"""The one ending of a request: what it used is settled before its image goes out, and counted and recorded once."""

import time
from dataclasses import replace

import uuid_utils

from kleinserve.core import Outcome, Size, Usage, UsageRecord
from kleinserve.core.draft import Draft
from kleinserve.desk.job import Job
from kleinserve.errors import KleinError, LedgerUnavailable
from kleinserve.metrics import Metrics
from kleinserve.usage.keys import Keys, LostOwnership
from kleinserve.usage.ledger import Ledger
from kleinserve.usage.price import Price


class Books:
    """Writes to the ledger and counts what is billable."""

    def __init__(self, ledger: Ledger, keys: Keys, price: Price, model: str, metrics: Metrics):
        self._keys = keys
        self.ledger, self.price, self._model, self._metrics = ledger, price, model, metrics

    def check(self) -> None:
        """Raise LedgerUnavailable while nothing could be recorded."""
        if not self.ledger.is_up:
            raise LedgerUnavailable()

    async def settle(self, *jobs: Job) -> None:
        """Record the images of one message as billable; when this returns they may be sent.

        All in one transaction, with the states of their keys; nothing of what was recorded before. Either all have keys
        or none has. Raises: LedgerUnavailable.
        """
        new = [job for job in jobs if not job.is_redraw]
        keyed = [(self._record(job), job.entry) for job in new if job.entry is not None]
        try:
            if keyed:
                await self._keys.commit(*keyed[0], *keyed[1:])
            elif new:
                await self.ledger.commit(*(self._record(job) for job in new))
        except LostOwnership as error:
            for job in new:
                job.is_redraw = True  # whoever has the keys now records them
            raise LedgerUnavailable("another server has taken this request over") from error
        except LedgerUnavailable:
            for job in new:
                job.doubted_id, job.record_id = job.record_id, new_record_id()
            raise
        for job in new:
            self._count(job)

    def finish(self, job: Job) -> None:
        """Record a job that ended without an image, beside whatever follows; also where `settle` has failed.

        What `settle` began may be written after it has failed: no image goes out for it, so it is taken out again.
        """
        if job.is_redraw:
            return
        record = self._record(job)
        if job.doubted_id and job.entry is not None:
            self._keys.abandon(job.entry, record, job.doubted_id, lambda: self._count(job))
        else:
            self.ledger.keep(record, instead_of=job.doubted_id)

    def refuse(self, request_id: str, caller: str, draft: Draft, error: KleinError, arrived: int) -> None:
        """Record a request that was refused, best effort."""
        size = draft.size or Size(0, 0)
        nothing = Usage(0, 0, 0, 0, False, self.price.version)
        self.ledger.note(
            UsageRecord(
                record_id=new_record_id(),
                request_id=request_id,
                caller=caller,
                client_tag=draft.options.client_tag,
                model=self._model,
                operation=draft.operation,
                outcome=Outcome.REFUSED,
                reason=error.reason,
                usage=nothing,
                size=size,
                references=len(draft.references),
                steps_run=0,
                accelerator_microseconds=0,
                accept_microseconds=arrived,
                end_microseconds=now_microseconds(),
            )
        )

    async def close(self) -> None:
        """Write what waits, then close the ledger."""
        self._keys.close()
        await self.ledger.close()

    def _count(self, job: Job) -> None:
        self._metrics.billable(job.request.operation, job.usage, job.request.caller)

    def _record(self, job: Job) -> UsageRecord:
        request, is_billable = job.request, job.outcome is Outcome.DELIVERED
        return UsageRecord(
            record_id=job.record_id,
            request_id=request.request_id,
            caller=request.caller,
            client_tag=request.options.client_tag,
            model=self._model,
            operation=request.operation,
            outcome=job.outcome,
            reason="" if job.error is None else job.error.reason,
            usage=job.usage if is_billable else replace(job.usage, billable=False, cost_microusd=0),
            size=request.size,
            references=len(request.references),
            steps_run=job.spent.steps_run,
            accelerator_microseconds=job.spent.accelerator_microseconds,
            accept_microseconds=job.accept_microseconds,
            end_microseconds=now_microseconds(),
        )


def now_microseconds() -> int:
    """Since 1970, UTC."""
    return time.time_ns() // 1000


def new_record_id() -> str:
    """A UUIDv7: unique, and in the order of time."""
    return str(uuid_utils.uuid7())
