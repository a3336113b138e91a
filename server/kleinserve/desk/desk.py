"""Where requests come in: each gets a place, is read, handed to the backend, and followed to its one ending."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import structlog

from kleinserve.backend.backend import Backend
from kleinserve.config import Config
from kleinserve.core import (
    Caller,
    Draft,
    EncodedImage,
    Failed,
    Finished,
    OnDisconnect,
    Priority,
    Request,
)
from kleinserve.desk.books import Books, new_record_id
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.job import READERS_MAX, Job, Stage
from kleinserve.desk.keys import Held, KeyRing
from kleinserve.desk.lifecycle import Lifecycle
from kleinserve.desk.places import Place
from kleinserve.desk.quota import SharedQuota
from kleinserve.desk.reader import Reader, Terms
from kleinserve.desk.reception import Asked, Entrance, Intake, Reception, accept
from kleinserve.errors import Cancelled, DeadlinePassed, Draining, Internal, KleinError, QueueFull
from kleinserve.identity.limits import Grant
from kleinserve.metrics import Metrics
from kleinserve.usage.price import usage

log = structlog.get_logger()


@dataclass(frozen=True)
class Stream:
    """One reader of one job."""

    job: Job
    reader: Reader
    grant: Grant | None = None  # a further reader's own


class Desk:
    """Every method is called on the event loop."""

    def __init__(
        self,
        backend: Backend,
        intake: Intake,
        books: Books,
        ring: KeyRing,
        quota: SharedQuota,
        lifecycle: Lifecycle,
        config: Config,
        metrics: Metrics,
    ):
        self._backend, self._books, self._metrics = backend, books, metrics
        self._ring, self._quota, self._lifecycle = ring, quota, lifecycle
        self._loop = asyncio.get_running_loop()
        self._reception = Reception(backend, intake, quota, config)
        self._jobs: dict[str, Job] = {}
        self._place: dict[Job, Place] = {}
        self._bundle: dict[Job, Bundle] = {}
        self._expiry: dict[Job, asyncio.TimerHandle] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()

    def check(self) -> None:
        """Raise NotReady, Draining or LedgerUnavailable where no request is taken now."""
        self._lifecycle.check()
        self._books.check()

    async def open(self, draft: Draft, asked: Asked) -> Stream:
        """A stream of the request's job: a new one's or, by its key, the running or kept one's.

        Raises: whatever refuses the request; then nothing of it is left.
        """
        self.check()
        key = draft.options.idempotency_key
        with self._reception.enter(asked) as entrance:
            if not key:
                return await self._new(draft, asked, entrance, None)
            digest = await self._ring.digest(draft)
            held = await self._ring.running(asked.caller.name, key, digest)
            if held is not None:
                stream = self._join(held, _terms(draft, asked), entrance.grant)
                entrance.place.leave()
                self._wait_for(stream.job, asked.bundle)
                return stream
            held = self._ring.hold(asked.caller.name, key, digest)
            try:
                draft, request_id = await self._ring.claim(held, draft, asked.request_id)
                return await self._new(draft, replace(asked, request_id=request_id), entrance, held)
            except BaseException:
                self._ring.refuse(held)
                raise

    async def _new(self, draft: Draft, asked: Asked, entrance: Entrance, held: Held | None) -> Stream:
        is_redraw = held is not None and held.is_redraw
        request = await self._reception.receive(draft, asked, entrance, is_free=is_redraw)
        job = self._job(request, asked, entrance.grant, held)
        stream = await self._submit(request, job, entrance.place, _terms(draft, asked), held)
        self._bundle[job] = asked.bundle
        asked.bundle.add(job, self._settle)
        return stream

    def _join(self, held: Held, terms: Terms, grant: Grant) -> Stream:
        """A further stream of a job that runs, or whose image is kept. Raises: QueueFull."""
        job = held.job
        assert job is not None
        if len(job.readers) >= READERS_MAX:
            raise QueueFull(f"{READERS_MAX} streams read this job already", retry_seconds=1.0)
        if terms.is_detached:
            self._ring.reserve(held, job)
        self._metrics.replays.labels("attached" if job.image is None else "replayed").inc()
        stream = Stream(job, job.join(terms, is_replay=True), grant)
        self._readers_changed(job)
        return stream

    def _job(self, request: Request, asked: Asked, grant: Grant, held: Held | None) -> Job:
        """The request's job, which outlives its pixels: those are the backend's alone."""
        used = usage(request.size, request.reference_sizes, self._books.price, billable=True)
        entry = None if held is None else held.entry
        is_redraw = held is not None and held.is_redraw
        return Job(
            request=request.without_pixels(),
            usage=entry.usage if is_redraw and entry is not None and entry.usage is not None else used,
            entry=entry,
            is_redraw=is_redraw,
            record_id=new_record_id(),
            accept_microseconds=asked.arrived_microseconds,
            grant=grant,
            on_change=self._changed,
            on_last=self._ended,
            submitted=self._loop.time(),
        )

    async def _submit(self, request: Request, job: Job, place: Place, terms: Terms, held: Held | None) -> Stream:
        left = None if terms.deadline is None or terms.is_detached else terms.deadline - self._loop.time()
        if held is not None and terms.is_detached:
            self._ring.reserve(held, job)
        admitted = await self._backend.submit(request, left, job.take)
        job.accepted = accept(job.request, admitted, self._backend.facts, job.usage)
        self._jobs[job.request.request_id] = job
        self._place[job] = place
        self._metrics.queue_depth.labels(job.request.options.priority.value).inc()
        stream = Stream(job, job.join(terms, is_replay=job.is_redraw))
        if held is not None:
            self._ring.admit(held, job)
        self._watch(job)
        return stream

    def _watch(self, job: Job) -> None:
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

    async def attach(self, key: str, asked: Asked) -> Stream:
        """A stream of the caller's job with this key.

        Raises: UnknownKey, ResultGone, KeyElsewhere, LedgerUnavailable.
        """
        self.check()
        held = await self._ring.running(asked.caller.name, key, None)
        if held is None:
            raise await self._ring.gone(asked.caller.name, key)
        grant = self._quota.join(asked.caller)
        try:
            return self._join(held, Terms(deadline=asked.deadline, priority=Priority.BATCH), grant)
        except BaseException:
            grant.release(ran=False, by_server=False)
            raise

    async def cancel(self, key: str, caller: Caller) -> bool:
        """End the caller's job with this key, or forget its image; either frees the key, and True says so.

        Raises: UnknownKey, KeyElsewhere, LedgerUnavailable.
        """
        held = await self._ring.running(caller.name, key, None)
        if held is None:
            self._ring.store.forget(await self._ring.remembered(caller.name, key))
            return True
        job = held.job
        assert job is not None
        cancelled = Cancelled("cancelled by its key")
        if job.is_committing or job.is_redraw:  # it is billed: only the image and the key go
            self._ring.forget(held)
        if job.is_committing:
            job.fail(cancelled)
        else:
            self.end(job, cancelled)
        return True

    def delivered(self, stream: Stream) -> None:
        """A stream has ended OK, with the whole image."""
        self._ring.deliver(stream.job)

    def leave(self, stream: Stream) -> Stage:
        """A stream has ended, however; returns where its job is, or ended.

        A job that nobody reads any more ends, unless it is detached or its image is settled.
        """
        job, stage = stream.job, stream.job.ended_in or stream.job.stage
        if stream.grant is not None:
            stream.grant.release(ran=False, by_server=False)
        job.readers.discard(stream.reader)
        if job.readers:
            self._readers_changed(job)
        elif not job.is_detached:
            self.end(job, Cancelled("its last reader went away"))
        if job.stage is Stage.DELIVERING and not job.readers:
            self._shelve(job)
        return stage

    def _readers_changed(self, job: Job) -> None:
        """Its deadline and its priority are its readers'."""
        self._watch(job)
        if job.stage in (Stage.WAITING, Stage.RUNNING):
            left = None if job.deadline is None else job.deadline - self._loop.time()
            self._backend.change(job.request.request_id, left, job.priority)

    def _shelve(self, job: Job) -> None:
        """Nobody reads it now: its image stays only where it is kept for its key."""
        is_kept = self._ring.is_kept(job)
        job.end(keeps_image=is_kept)
        if not is_kept:
            self._ring.end(job)

    def _changed(self, job: Job, before: Stage) -> None:
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
        if job.stage is Stage.OVER:
            self._watch(job)
            job.grant.release(ran=job.started is not None, by_server=job.error is not None and job.error.is_by_server)
            if job.error is not None:
                self._ring.end(job)
                self._end_all(self._bundle.get(job), job.error)

    def _end_all(self, bundle: Bundle | None, error: KleinError) -> None:
        """One of its images will not be there: none is settled."""
        for job in bundle.jobs if bundle is not None else ():
            self.end(job, error)

    def _wait_for(self, joined: Job, bundle: Bundle) -> None:
        """An image of the bundle is one that another settles: its own are not settled before that is drawn."""

        def spent() -> None:
            if joined.error is None:
                bundle.leave_out()
            else:
                self._end_all(bundle, joined.error)

        joined.when_spent(spent)

    def _ended(self, job: Job, last: Finished | Failed) -> None:
        """The backend's last word: settle the image with those of its bundle, or record that there is none."""
        if isinstance(last, Finished) and job.stage is not Stage.OVER:
            self._bundle[job].draw(job, last.image)
            return
        if isinstance(last, Failed):
            job.fail(last.error)
        self._close(job)

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


def _terms(draft: Draft, asked: Asked) -> Terms:
    options = draft.options
    is_detached = options.on_disconnect is OnDisconnect.DETACH
    return Terms(options.client_tag, asked.deadline, is_detached=is_detached, priority=options.priority)
