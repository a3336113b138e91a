"""Every admitted job until its picture is made: bounded while it waits, claimed by one thread at a time. No policy."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from kleinserve.errors import QueueFull
from kleinserve.scheduler.job import Job, Stage

Choose = Callable[[Sequence[Job]], list[Job]]


class Queue:
    """Jobs in order of arrival. Safe between the event loop, which puts, and the engine's threads, which claim."""

    def __init__(self, requests_max: int, bytes_max: int):
        self._requests_max, self._bytes_max = requests_max, bytes_max
        self._jobs: dict[Job, None] = {}
        self._claimed: set[Job] = set()
        self._reserved: list[int] = []  # bytes of requests whose references are being decoded
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, job: Job) -> None:
        """Add a job that `check` has let in."""
        with self._changed:
            self._jobs[job] = None
            self._changed.notify_all()

    def check(self, held_bytes: int, busy_seconds: Callable[[], float], reserved_bytes: int | None = None) -> None:
        """Raise QueueFull where a job of `held_bytes` does not fit; `busy_seconds` says when to try again.

        `reserved_bytes`: what it has reserved for itself.
        """
        waiting = [job for job in self.jobs() if job.stage is Stage.WAITING]
        count = len(waiting) + len(self._reserved) - (reserved_bytes is not None)
        held = sum(job.held_bytes for job in waiting) + sum(self._reserved) - (reserved_bytes or 0)
        if count >= self._requests_max:
            said = f"{count} requests are waiting, the limit is {self._requests_max}"
        elif count and held + held_bytes > self._bytes_max:
            said = f"waiting requests hold {held} bytes, {held_bytes} more would pass the limit {self._bytes_max}"
        else:
            return
        raise QueueFull(said, retry_seconds=max(1.0, busy_seconds()))

    @contextmanager
    def reserved(self, held_bytes: int) -> Iterator[None]:
        """Hold a place for the block, on the event loop, for a request that is not a job yet."""
        self._reserved.append(held_bytes)
        try:
            yield
        finally:
            self._reserved.remove(held_bytes)

    def claim(self, choose: Choose, *, waits: bool = True) -> list[Job]:
        """Wait until `choose` finds something among the jobs that no thread holds, and hold it; [] once closed.

        Without waiting, [] also where it finds nothing now.
        """
        with self._changed:
            while not self._is_closed:
                chosen = choose([job for job in self._jobs if job not in self._claimed and not job.is_gone])
                if chosen:
                    self._claimed.update(chosen)
                    return chosen
                if not waits:
                    return []
                self._changed.wait()
            return []

    def release(self, jobs: Iterable[Job]) -> None:
        """Give claimed jobs back for the next thread."""
        with self._changed:
            self._claimed.difference_update(jobs)
            self._changed.notify_all()

    def remove(self, job: Job) -> None:
        """Forget a job; one that is not here is left alone. Whoever holds it is not disturbed."""
        with self._changed:
            self._jobs.pop(job, None)

    def jobs(self) -> list[Job]:
        """All jobs in order of arrival."""
        with self._changed:
            return list(self._jobs)

    def close(self) -> None:
        """End every claim, now and later, with nothing."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
