"""The last word on a work, said once; and how a failure is kept to whom it belongs. Knows no threads."""

from collections.abc import Callable, Sequence

import structlog

from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory, Cancelled, DeadlinePassed, Internal, KleinError
from kleinserve.scheduler.outbox import Outbox
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.turns import Turns
from kleinserve.scheduler.work import Work

_RETRY_SECONDS = 5.0  # after running out of memory: time for what ran beside it to finish

log = structlog.get_logger()


class Ending:
    """Ends works, each once, whichever thread is the first to say so. `observe` hears of each before the outbox."""

    def __init__(self, queue: Queue, turns: Turns, outbox: Outbox, observe: Callable[[Work, KleinError | None], None]):
        self._queue, self._turns, self._outbox, self._observe = queue, turns, outbox, observe

    def decoded(self, work: Work) -> None:
        """Its picture is made."""
        if self._end(work, None):
            self._outbox.decoded(work)

    def failed(self, work: Work, error: KleinError) -> None:
        """It has no picture."""
        if self._end(work, error):
            self._outbox.failed(work, error)

    def cancel(self, work: Work, error: KleinError | None) -> None:
        """It is to fail with this error, without one with Cancelled: now, unless a thread holds it."""
        work.gone_for = error
        if self._queue.let_go(work):
            self.gone(work)

    def gone(self, work: Work) -> None:
        """It was cancelled, and has come to a boundary."""
        self.failed(work, work.gone_for or Cancelled("the request was cancelled"))

    def expire(self, works: Sequence[Work], now: float) -> list[Work]:
        """Cancel those of the works that are too late; returns the others."""
        for work in works:
            if work.deadline is not None and work.deadline <= now:
                self.cancel(work, DeadlinePassed("the deadline passed before the image was finished"))
        return [work for work in works if not work.is_gone]

    def out_of_memory(self, work: Work) -> None:
        """There was no memory for it, even alone."""
        request = work.request
        said = f"not enough accelerator memory for {request.size} with {len(request.references)} references"
        self.failed(work, AcceleratorOutOfMemory(said, retry_seconds=_RETRY_SECONDS))

    def broke(self, work: Work, error: Exception) -> None:
        """What was done for it alone has failed."""
        if isinstance(error, KleinError):
            self.failed(work, error)
            return
        request_id = work.request.request_id
        log.error("request failed", request_id=request_id, exc_info=error)
        self.failed(work, Internal(f"internal error, request {request_id}"))

    def _end(self, work: Work, error: KleinError | None) -> bool:
        if not self._queue.end(work):
            return False
        self._turns.go(work.request.caller)
        self._observe(work, error)
        return True


def together(
    do: Callable[[list[Work]], object], works: list[Work], ending: Ending, out_of_memory: Callable[[], object]
) -> list[Work]:
    """Do it for all works at once; where that fails, for each alone, and only what fails alone ends.

    `out_of_memory` is told when memory did not suffice, before it is tried again. Returns the works for which it
    succeeded. `do` must leave no trace when it fails. Raises: AcceleratorLost.
    """
    is_memory = False
    try:
        do(works)
        return works
    except AcceleratorLost:
        raise
    except AcceleratorOutOfMemory:
        is_memory = True  # what it holds of the device is free only when the exception is gone
    except Exception as error:
        if len(works) == 1:
            ending.broke(works[0], error)
            return []
        ids = [work.request.request_id for work in works]
        log.warning("trying alone what failed together", request_ids=ids, error=str(error)[:200])
    if is_memory:
        out_of_memory()
        if len(works) == 1:
            ending.out_of_memory(works[0])
            return []
    return [work for single in works for work in together(do, [single], ending, out_of_memory)]
