"""Where requests come in: each gets a place, is read, handed to the backend, and given its streams."""

import asyncio
from dataclasses import dataclass, replace

from kleinserve.backend.backend import Backend
from kleinserve.config import Config
from kleinserve.core import Caller, Draft, OnDisconnect, Priority, Request
from kleinserve.desk.books import Books, new_record_id
from kleinserve.desk.job import READERS_MAX, Job, Stage
from kleinserve.desk.jobs import Jobs
from kleinserve.desk.keys import Held, KeyRing
from kleinserve.desk.lifecycle import Lifecycle
from kleinserve.desk.quota import SharedQuota
from kleinserve.desk.reader import Reader, Terms
from kleinserve.desk.reception import Asked, Entrance, Intake, Reception, accept
from kleinserve.errors import Cancelled, QueueFull
from kleinserve.identity.limits import Grant
from kleinserve.metrics import Metrics
from kleinserve.usage.price import usage


@dataclass(frozen=True)
class Stream:
    """One reader of one job."""

    job: Job
    reader: Reader
    grant: Grant | None = None  # a further reader's own


class Desk:
    """Opens, attaches, cancels; `jobs` follows what it has taken. Every method is called on the event loop."""

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
        self.jobs = Jobs(backend, books, ring, metrics)

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
                self.jobs.wait_for(stream.job, asked.bundle)
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
        terms = _terms(draft, asked)
        await self._submit(request, job, terms, held)
        self.jobs.add(job, entrance.place, asked.bundle)
        stream = Stream(job, job.join(terms, is_replay=is_redraw))
        if held is not None:
            self._ring.admit(held, job)
        self.jobs.watch(job)
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
        self.jobs.readers_changed(job)
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
            on_change=self.jobs.changed,
            on_last=self.jobs.ended,
            submitted=self._loop.time(),
        )

    async def _submit(self, request: Request, job: Job, terms: Terms, held: Held | None) -> None:
        left = None if terms.deadline is None or terms.is_detached else terms.deadline - self._loop.time()
        if held is not None and terms.is_detached:
            self._ring.reserve(held, job)
        admitted = await self._backend.submit(request, left, job.take)
        job.accepted = accept(job.request, admitted, self._backend.facts, job.usage)

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
            self.jobs.end(job, cancelled)
        return True

    def delivered(self, stream: Stream) -> None:
        """A stream has ended OK, with the whole image."""
        self._ring.deliver(stream.job)

    def leave(self, stream: Stream) -> Stage:
        """A stream has ended, however; returns where its job is, or ended."""
        job, stage = stream.job, stream.job.ended_in or stream.job.stage
        if stream.grant is not None:
            stream.grant.release(ran=False, by_server=False)
        job.readers.discard(stream.reader)
        self.jobs.reader_left(job)
        return stage


def _terms(draft: Draft, asked: Asked) -> Terms:
    options = draft.options
    is_detached = options.on_disconnect is OnDisconnect.DETACH
    return Terms(options.client_tag, asked.deadline, is_detached=is_detached, priority=options.priority)
