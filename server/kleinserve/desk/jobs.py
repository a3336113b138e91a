"""The jobs that are not over: each is followed to its one ending, and all of a bundle end alike. Knows no calls."""

import asyncio
from typing import Any

import structlog

from kleinserve.backend.backend import Backend
from kleinserve.core import EncodedImage, Failed, Finished
from kleinserve.desk.books import Books
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.job import Job, Stage
from kleinserve.desk.keys import KeyRing
from kleinserve.desk.places import Place
from kleinserve.errors import Cancelled, DeadlinePassed, Draining, Internal, KleinError
from kleinserve.metrics import Metrics

_SILENCE_SECONDS = 10.0  # after which a running job's readers are told its progress again

log = structlog.get_logger()


class Jobs:
    """Every method is called on the event loop. `changed` and `ended` are what jobs call."""

    def __init__(self, backend: Backend, books: Books, ring: KeyRing, metrics: Metrics):
        self._backend, self._books, self._ring, self._metrics = backend, books, ring, metrics
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, Job] = {}
        self._place: dict[Job, Place] = {}
        self._bundle: dict[Job, Bundle] = {}
        self._expiry: dict[Job, asyncio.TimerHandle] = {}
        self._silence: dict[Job, asyncio.TimerHandle] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()

    def add(self, job: Job, place: Place, bundle: Bundle) -> None:
        """Follow a job that its backend has taken; it has its place until it starts."""
        self._jobs[job.request.request_id] = job
        self._place[job], self._bundle[job] = place, bundle
        self._metrics.queue_depth.labels(job.request.options.priority.value).inc()
        bundle.add(job, self._settle)

    def watch(self, job: Job) -> None:
        """End the job at its deadline, which changes with its readers."""
        if (timer := self._expiry.pop(job, None)) is not None:
            timer.cancel()
        if job.deadline is not None and job.stage is not Stage.OVER:
            self._expiry[job] = self._loop.call_at(job.deadline, self._expire, job)

    def _expire(self, job: Job) -> None:
        self.end(job, DeadlinePassed("the deadline passed before the image was finished"))

    def end(self, job: Job, error: KleinError) -> None:
        """End a job early, and its bundle; its backend stops at the next boundary and then says what was spent."""
        if job.stage not in (Stage.WAITING, Stage.RUNNING) or job.is_committing:
            return
        job.fail(error)
        if job.last_word is None:
            self._backend.cancel(job.request.request_id)
        else:  # its image was drawn, and waited for the others
            self._close(job)

    def readers_changed(self, job: Job) -> None:
        """Its deadline and its priority are its readers'."""
        self.watch(job)
        if job.stage in (Stage.WAITING, Stage.RUNNING):
            left = None if job.deadline is None else job.deadline - self._loop.time()
            self._backend.change(job.request.request_id, left, job.priority)

    def reader_left(self, job: Job) -> None:
        """A job that nobody reads any more ends, unless it is detached or its image is settled."""
        if job.readers:
            self.readers_changed(job)
        elif not job.is_detached:
            self.end(job, Cancelled("its last reader went away"))
        if job.stage is Stage.DELIVERING and not job.readers:
            self._shelve(job)

    def _shelve(self, job: Job) -> None:
        """Nobody reads it now: its image stays only where it is kept for its key."""
        is_kept = self._ring.is_kept(job)
        job.end(keeps_image=is_kept)
        if not is_kept:
            self._ring.end(job)

    def changed(self, job: Job, before: Stage) -> None:
        """Keep the gauges, the places and the timers in step with the job's stage."""
        priority = job.request.options.priority.value
        if before is Stage.WAITING:
            self._metrics.queue_depth.labels(priority).dec()
            self._place.pop(job).leave()
        if job.stage is Stage.RUNNING:
            self._metrics.running_requests.inc()
            self._metrics.queue_wait_seconds.labels(job.request.operation.value).observe(job.queue_seconds)
        if before in (Stage.RUNNING, Stage.DELIVERING) and job.stage is Stage.OVER:
            self._metrics.running_requests.dec()
        if (silence := self._silence.pop(job, None)) is not None:
            silence.cancel()
        if job.stage is Stage.OVER:
            self.watch(job)
            job.grant.release(ran=job.started is not None, by_server=job.error is not None and job.error.is_by_server)
            if job.error is not None:
                self._ring.end(job)
                self._end_all(self._bundle.get(job), job.error)

    def _end_all(self, bundle: Bundle | None, error: KleinError) -> None:
        """One of its images will not be there: none is settled."""
        for job in bundle.jobs if bundle is not None else ():
            self.end(job, error)

    def wait_for(self, joined: Job, bundle: Bundle) -> None:
        """An image of the bundle is one that another settles: its own are not settled before that is drawn."""

        def spent() -> None:
            if joined.error is None:
                bundle.leave_out()
            else:
                self._end_all(bundle, joined.error)

        joined.when_spent(spent)

    def ended(self, job: Job, last: Finished | Failed) -> None:
        """The backend's last word: settle the image with those of its bundle, or record that there is none."""
        if isinstance(last, Finished) and job.stage is not Stage.OVER:
            self._bundle[job].draw(job, last.image)
            self._break_silence(job)
            return
        if isinstance(last, Failed):
            job.fail(last.error)
        self._close(job)

    def _break_silence(self, job: Job) -> None:
        """Its backend says nothing more: as long as it waits for its bundle, its readers hear of it from here."""
        self._silence[job] = self._loop.call_at(job.told + _SILENCE_SECONDS, self._remind, job)

    def _remind(self, job: Job) -> None:
        job.remind(max(each.estimated_remaining for each in self._bundle[job].jobs))
        self._break_silence(job)

    def _settle(self, bundle: Bundle) -> None:
        """All its images are drawn."""
        task = self._loop.create_task(self._deliver(bundle.drawn))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _deliver(self, drawn: dict[Job, EncodedImage]) -> None:
        """Nothing is sent before all of it is written down."""
        if any(job.error is not None for job in drawn):  # one was ended before their commit began, and so were all
            return
        for job in drawn:
            job.is_committing = True
        error: KleinError | None = None
        try:
            await self._books.settle(*drawn)
        except KleinError as refused:
            error = refused
        except Exception:
            request_id = next(iter(drawn)).request.request_id
            log.exception("settling failed", request_id=request_id)
            error = Internal(f"internal error, request {request_id}")
        for job, image in drawn.items():
            if error is None:
                self._hand_over(job, image)
            else:
                job.fail(error)
                self._close(job)
        drawn.clear()

    def _hand_over(self, job: Job, image: EncodedImage) -> None:
        if job.stage is not Stage.OVER:  # cancelled by its key meanwhile
            job.deliver(image)
            self._ring.keep(job)
        self._forget(job)
        if job.stage is Stage.DELIVERING and not job.readers:
            self._shelve(job)

    def _close(self, job: Job) -> None:
        self._books.finish(job)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.request.request_id, None)
        self._bundle.pop(job, None)
        if not self._jobs:
            self._idle.set()

    async def drain(self, grace_seconds: float) -> None:
        """Let the admitted requests finish for `grace_seconds`, end the rest with DRAINING."""
        try:
            async with asyncio.timeout(grace_seconds):
                while self._jobs:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.warning("grace period over", unfinished=len(self._jobs))
            for job in list(self._jobs.values()):
                self.end(job, Draining())

    def shown(self) -> list[dict[str, Any]]:
        """What waits and what runs, in order of arrival, for whoever debugs: no prompts."""
        return [job.shown(self._loop.time()) for job in self._jobs.values()]

    def cancel_request(self, request_id: str) -> bool:
        """End a request in its caller's place; False: there is none, or its image is billed and on its way."""
        job = self._jobs.get(request_id)
        if job is None or job.error is not None:
            return False
        cancelled = Cancelled("an operator cancelled it")
        cancelled.is_by_server = True
        self.end(job, cancelled)
        return job.stage is Stage.OVER
