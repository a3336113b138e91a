"""Tells the waiting jobs how many are before them, and how long that may take. On the event loop."""

import asyncio
import time

from kleinserve.scheduler import admission, policy
from kleinserve.scheduler.cost import Share
from kleinserve.scheduler.job import Stage
from kleinserve.scheduler.outlook import Outlook
from kleinserve.scheduler.queue import Queue

_EVERY_SECONDS = 5.0
_SOON_SECONDS = 0.02  # changes within it are told once; a job that starts within it has not waited and is told nothing


class Positions:
    """`soon` after every change of the queue, and now and then for what is due."""

    def __init__(self, queue: Queue, outlook: Outlook, *, is_overlapping: bool):
        self._queue, self._outlook, self._is_overlapping = queue, outlook, is_overlapping
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON_SECONDS, self._tell)

    def _tell(self) -> None:
        """Tell each its position, where it has changed or is due; who has just come is told a little later."""
        self._timer = None
        jobs = self._queue.jobs()
        if all(job.stage is not Stage.WAITING for job in jobs):
            return
        claims = [self._outlook.claim(job) for job in jobs]
        position, before = 0, Share(0.0, 0.0)
        for i in policy.order([claim.standing for claim in claims], time.monotonic()):
            if jobs[i].stage is Stage.WAITING:
                if jobs[i].queue_seconds < _SOON_SECONDS:
                    self.soon()
                else:
                    wait = admission.spent([before], is_overlapping=self._is_overlapping)
                    jobs[i].queued(position, wait, _EVERY_SECONDS)
                position += 1
            before += claims[i].share
