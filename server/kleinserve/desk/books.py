"""The one ending of a request: what it used is settled before its image goes out, and counted and recorded once."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace

import structlog
import uuid_utils

from kleinserve.core import Outcome, Size, Usage, UsageRecord
from kleinserve.core.draft import Draft
from kleinserve.desk.job import Job
from kleinserve.errors import KleinError, LedgerUnavailable
from kleinserve.metrics import Metrics
from kleinserve.usage.keys import Keys, LostOwnership
from kleinserve.usage.ledger import Ledger
from kleinserve.usage.price import Price

log = structlog.get_logger()


class Books:
    """Writes to the ledger and counts what is billable."""

    def __init__(self, ledger: Ledger, keys: Keys, price: Price, model: str, metrics: Metrics):
        self._keys = keys
        self.ledger, self.price, self._model, self._metrics = ledger, price, model, metrics
        self._tasks: set[asyncio.Task[None]] = set()

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
        for job in new:
            self._metrics.billable(job.request.operation, job.usage, job.request.caller)

    def finish(self, job: Job) -> None:
        """Record a job that ended without an image, beside whatever follows."""
        if not job.is_redraw:
            self._spawn(self._write(self._record(job)))

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
        """Write what is being written, then close the ledger."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._keys.close()
        await self.ledger.close()

    async def _write(self, record: UsageRecord) -> None:
        try:
            await self.ledger.commit(record)
        except LedgerUnavailable as error:
            log.warning("record not written", record_id=record.record_id, error=error.message)

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

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def now_microseconds() -> int:
    """Since 1970, UTC."""
    return time.time_ns() // 1000


def new_record_id() -> str:
    """A UUIDv7: unique, and in the order of time."""
    return str(uuid_utils.uuid7())
