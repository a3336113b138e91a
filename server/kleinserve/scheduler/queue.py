"""The waiting room: admitted jobs that have not begun, bounded in number and bytes. Knows no policy."""

import threading
from collections.abc import Iterable

from kleinserve.errors import QueueFull
from kleinserve.scheduler.job import Job


class WaitingRoom:
    """Jobs in order of arrival. Safe between the event loop, which puts, and the engine thread, which takes."""

    def __init__(self, requests_max: int, bytes_max: int):
        self._requests_max, self._bytes_max = requests_max, bytes_max
        self._jobs: dict[Job, None] = {}
        self._bytes = 0
        self.changed = threading.Condition()

    def put(self, job: Job) -> None:
        """Add at the end. Raises: QueueFull."""
        with self.changed:
            self._check(job.held_bytes)
            self._jobs[job] = None
            self._bytes += job.held_bytes
            self.changed.notify()

    def check(self, held_bytes: int, retry_seconds: float) -> None:
        """Raise QueueFull now, before anything is decoded, where a job of `held_bytes` would not fit."""
        with self.changed:
            self._check(held_bytes, retry_seconds)

    def _check(self, held_bytes: int, retry_seconds: float = 1.0) -> None:
        if len(self._jobs) >= self._requests_max:
            raise QueueFull(
                f"{len(self._jobs)} requests are waiting, the limit is {self._requests_max}",
                retry_seconds=max(1.0, retry_seconds),
            )
        if self._jobs and self._bytes + held_bytes > self._bytes_max:
            raise QueueFull(
                f"waiting requests hold {self._bytes} bytes, {held_bytes} more would pass the limit {self._bytes_max}",
                retry_seconds=max(1.0, retry_seconds),
            )

    def remove(self, jobs: Iterable[Job]) -> None:
        """Take these jobs out; those that are not here are left alone."""
        with self.changed:
            for job in jobs:
                if job in self._jobs:
                    del self._jobs[job]
                    self._bytes -= job.held_bytes

    def waiting(self) -> list[Job]:
        """The jobs in order of arrival."""
        with self.changed:
            return list(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)
