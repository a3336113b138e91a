"""A thread that claims jobs, works on them and gives them back, and how a failure is kept to whom it belongs."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kleinserve.core import Pixels, Preview, Progress
from kleinserve.engine import memory
from kleinserve.engine.alpha import Picture
from kleinserve.errors import AcceleratorOutOfMemory, Internal, KleinError
from kleinserve.scheduler.job import Job
from kleinserve.scheduler.queue import Choose, Queue

_RETRY_SECONDS = 5.0  # after running out of memory: time for what ran beside it to finish

log = structlog.get_logger()


@dataclass(frozen=True)
class Hands:
    """What the engine's threads hand to the event loop; each is safe to call from them and returns at once."""

    started: Callable[[list[Job]], None]
    progress: Callable[[Job, Progress], None]
    preview: Callable[[Job, Pixels | Preview, int], None]  # with its step
    picture: Callable[[Job, Picture], None]
    failed: Callable[[Job, KleinError], None]
    died: Callable[[BaseException], None]


class Worker(threading.Thread):
    """Does `work` on what `choose` finds until the queue is closed.

    A failure that leaves the device unusable ends it through `died`.
    """

    def __init__(
        self, name: str, queue: Queue, choose: Choose, work: Callable[[list[Job]], None], died: Callable[..., None]
    ):
        super().__init__(name=name, daemon=True)
        self._queue, self._choose, self._work, self._died = queue, choose, work, died

    def run(self) -> None:
        try:
            while jobs := self._queue.claim(self._choose):
                self._work(jobs)
                self._queue.release(jobs)
                del jobs  # while it waits it holds nobody's memory
        except BaseException as error:
            log.exception("engine died", thread=self.name)
            self._died(error)


def together(
    work: Callable[[list[Job]], object],
    jobs: list[Job],
    failed: Callable[[Job, KleinError], None],
    split: Callable[[], object] = lambda: None,
) -> list[Job]:
    """Do `work` for all jobs at once; where that fails, for each alone, and only what fails alone is `failed`.

    `split` is told when memory did not suffice for all at once.

    Returns the jobs for which it succeeded. `work` must leave no trace when it fails.
    """
    try:
        if jobs:
            work(jobs)
        return list(jobs)
    except Exception as error:
        if memory.is_fatal(error):
            raise
        if len(jobs) == 1:
            jobs[0].is_gone = True  # at once: no thread is to try it again
            failed(jobs[0], _answer(error, jobs[0]))
            return []
        ids = [job.request.request_id for job in jobs]
        log.warning("trying alone what failed together", request_ids=ids, error=str(error)[:200])
        if memory.is_exhausted(error):
            split()
    memory.release()
    return [job for single in jobs for job in together(work, [single], failed)]


def _answer(error: Exception, job: Job) -> KleinError:
    if isinstance(error, KleinError):
        return error
    if memory.is_exhausted(error):
        return AcceleratorOutOfMemory(
            f"not enough accelerator memory for {job.request.size} with {len(job.request.references)} references",
            retry_seconds=_RETRY_SECONDS,
        )
    log.error("request failed", request_id=job.request.request_id, exc_info=error)
    return Internal(f"internal error, request {job.request.request_id}")
