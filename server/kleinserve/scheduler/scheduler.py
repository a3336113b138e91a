"""The event loop's side: admission, reminders, drain. Knows no gRPC."""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import structlog

from kleinserve.codec import reference
from kleinserve.config import Config
from kleinserve.core import Accepted, Reference, Request
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine
from kleinserve.errors import (
    DeadlineImpossible,
    DeadlinePassed,
    DeadlineUnreachable,
    Draining,
    Internal,
    NotReady,
)
from kleinserve.metrics import Metrics
from kleinserve.scheduler import admission
from kleinserve.scheduler.calibrate import calibrated
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.delivery import Delivery
from kleinserve.scheduler.ends import Ends
from kleinserve.scheduler.job import Job, Stage, load_of
from kleinserve.scheduler.outlook import Outlook
from kleinserve.scheduler.policy import Turns
from kleinserve.scheduler.positions import Positions
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.stepping import Stepping
from kleinserve.scheduler.worker import Hands, Worker
from kleinserve.usage import price

_PROGRESS_EVERY_SECONDS = 10.0
_REMINDER_SECONDS = 0.5  # how often it is looked whether a position or a progress is due
_STEP_TOKENS_MAX = 8192  # of the budget found by calibration: two images of 1024², whose activations fit

log = structlog.get_logger()


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Scheduler:
    """Admits requests, feeds the engine's threads, and turns what they hand back into events.

    Created on the running event loop; every method is called on it.
    """

    def __init__(self, engine: Engine, config: Config, metrics: Metrics, on_state: Callable[[State], None]):
        self._engine, self._config, self._metrics, self._on_state = engine, config, metrics, on_state
        self._loop = asyncio.get_running_loop()
        self._delivery = Delivery(engine.facts.name, config.codec_threads, metrics)
        self._queue = Queue(config.queue_requests_max, config.queue_bytes_max)
        self._outlook = Outlook(Cost(), Turns(), engine.pauses.longest)
        # Side by side only where each thread has all the threads that it was measured with.
        is_roomy = 2 * config.torch_threads <= (os.cpu_count() or 1)
        self._is_overlapping = engine.facts.device == "cpu" and is_roomy
        self._positions = Positions(self._queue, self._outlook, is_overlapping=self._is_overlapping)
        self._price = price.configured(config)
        self._jobs: set[Job] = set()
        self._workers: list[Worker] = []
        self._reminder: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self.state = State.STARTING

    async def start(self) -> None:
        """Make real warm-up images and calibrate by them, then serve. Raises what the warm-up raised."""
        self._outlook.cost = await self._delivery.pooled(calibrated, self._engine)
        hands = Hands(
            started=self._hand(self._started),
            progress=self._hand(lambda job, progress: job.post(progress)),
            preview=self._hand(self._delivery.preview),
            picture=self._hand(self._picture),
            failed=self._hand(lambda job, error: job.fail(error)),
            died=self._hand(self._died),
        )
        engine, queue, outlook = self._engine, self._queue, self._outlook
        saturating = outlook.cost.saturating_tokens(engine.work_per_token) or _STEP_TOKENS_MAX
        tokens_max = self._config.step_tokens_max or min(saturating, _STEP_TOKENS_MAX)
        self._metrics.step_tokens_max.set(tokens_max)
        stepping = Stepping(engine, outlook, self._metrics, hands, tokens_max)
        ends = Ends(engine, outlook, self._metrics, hands, self._config.decode_pixels_max, queue)
        self._workers = [
            Worker("steps", queue, stepping.choose, stepping.step, hands.died),
            Worker("ends", queue, ends.choose, ends.work, hands.died),
        ]
        for worker in self._workers:
            worker.start()
        self._reminder = self._loop.create_task(self._remind())
        self._become(State.READY)

    def _hand(self, function: Callable[..., None]) -> Callable[..., None]:
        """`function` as the engine's threads may call it: run soon, on the event loop."""

        def hand(*arguments: Any) -> None:
            self._loop.call_soon_threadsafe(function, *arguments)

        return hand

    def _become(self, state: State) -> None:
        self.state = state
        self._on_state(state)

    def check(self, held_bytes: int) -> None:
        """Raise NotReady, Draining or QueueFull now where a request holding `held_bytes` cannot be admitted."""
        if self.state is State.STARTING:
            raise NotReady()
        if self.state is not State.READY:
            raise Draining()
        self._queue.check(held_bytes, self._busy_seconds)

    async def admitted(
        self,
        encoded: Sequence[bytes],
        request: Callable[[tuple[Reference, ...]], Request],
        deadline: float | None,
        message_bytes: int,
    ) -> tuple[Job, Accepted]:
        """Decode the references of a request and admit it, holding its place meanwhile.

        Raises: a RefusedReference, InvalidField, and what `check` and `submit` raise.
        """
        self.check(message_bytes)
        with self._queue.reserved(message_bytes):
            references = await self.decode(encoded)
            return await self.submit(request(references), deadline, message_bytes)

    def _busy_seconds(self) -> float:
        """Seconds until everything that is admitted now is done."""
        return admission.spent(
            (self._outlook.claim(job).share for job in self._queue.jobs()), is_overlapping=self._is_overlapping
        )

    async def decode(self, references: Sequence[bytes]) -> tuple[Reference, ...]:
        """The references as the model sees them. In the pool, the check too: a hostile header takes Pillow seconds.

        Raises: the first one's RefusedReference.
        """
        keep_alpha = self._engine.facts.has_native_alpha
        limits = {"bytes_max": self._config.reference_bytes_max, "pixels_max": self._config.reference_pixels_max}

        def one(index: int, data: bytes) -> Reference:
            reference.check(index, data, **limits)
            pixels = reference.decode(index, data, keep_alpha=keep_alpha)
            digest = hashlib.sha256(f"{pixels.size}/{pixels.channels}/".encode() + pixels.data).digest()
            return Reference(pixels, digest)

        pooled, spawn = self._delivery.pooled, self._loop.create_task
        decoding = [spawn(pooled(one, index, data)) for index, data in enumerate(references)]
        await asyncio.gather(*decoding, return_exceptions=True)  # of two errors not the earlier one is told
        return tuple(task.result() for task in decoding)

    async def submit(self, request: Request, deadline: float | None, message_bytes: int) -> tuple[Job, Accepted]:
        """Admit a request; `deadline` in monotonic seconds, `message_bytes` what the queue has reserved for it.

        Raises: Draining, QueueFull, DeadlinePassed, DeadlineUnreachable, DeadlineImpossible.
        """
        drawing = await self._delivery.pooled(self._engine.drawing, request)
        usage = price.usage(request.size, request.reference_sizes, self._price, billable=True)
        job = Job(request, drawing, load_of(self._engine, drawing), usage, deadline, message_bytes, self._committed)
        if self.state is not State.READY:
            raise Draining()
        self._queue.check(job.held_bytes, self._busy_seconds, message_bytes)
        wait = self._admitted(job)
        accepted = Accepted(
            seed=request.seed,
            size=request.size,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            model=self._engine.facts.name,
            reference_sizes=request.reference_sizes,
            prompt_tokens=min(drawing.prompt.count, self._engine.facts.prompt_tokens_max),
            prompt_truncated=drawing.prompt.is_truncated,
            estimated_wait=wait,
            estimated_duration=self._outlook.remaining(job),
            estimated_usage=price.usage(request.size, request.reference_sizes, self._price, billable=False),
        )
        self._jobs.add(job)
        self._outlook.turns.come(request.caller)
        if deadline is not None:
            passed = DeadlinePassed("the deadline passed before the image was finished")
            job.expiry = self._loop.call_later(deadline - time.monotonic(), job.fail, passed)
        self._queue.put(job)
        self._metrics.queue_depth.labels(request.priority.value).inc()
        self._positions.soon()
        return job, accepted

    def _admitted(self, job: Job) -> float:
        """The predicted wait of a job. Raises where its deadline cannot be met, or would make another one missed."""
        now, mine, cost = time.monotonic(), self._outlook.claim(job), self._outlook.cost
        claims = [self._outlook.claim(other) for other in self._queue.jobs() if not other.is_gone]
        wait = admission.wait(claims, mine.standing, now, is_overlapping=self._is_overlapping)
        if job.deadline is None:
            return wait
        left = job.deadline - now
        if left <= 0:
            raise DeadlinePassed("the deadline had passed when the request could be admitted")
        if self._config.deadline_admission and cost.is_calibrated:
            idle = cost.idle(job.load, job.drawing.total_steps)
            if idle > left:
                raise DeadlineImpossible(f"{left:.3f} s are left, an idle server needs {idle:.3f} s")
            late = admission.lateness(claims, mine, now, is_overlapping=self._is_overlapping)
            if claims and late > 0:  # with nobody before it the idle server's time decides
                said = f"{left:.3f} s are left; with what is admitted that would be {late:.3f} s late"
                raise DeadlineUnreachable(said, retry_seconds=max(1.0, late))
        return wait

    def leave(self, job: Job) -> Stage:
        """The job's stream has ended, however: forget it. Returns the stage it was in."""
        stage = job.leave()
        self._jobs.discard(job)
        if all(other.request.caller != job.request.caller for other in self._jobs):
            self._outlook.turns.go(job.request.caller)
        self._delivery.forget(job)
        self._queue.remove(job)
        if stage is Stage.WAITING:
            self._metrics.queue_depth.labels(job.request.priority.value).dec()
        else:
            self._metrics.running_requests.dec()
        if job.first_preview is not None:
            seconds = job.first_preview - job.submitted
            self._metrics.time_to_first_preview_seconds.labels(job.request.operation.value).observe(seconds)
        self._positions.soon()
        if not self._jobs:
            self._idle.set()
        return stage

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new requests, let the admitted ones finish for `grace_seconds`, end the rest with DRAINING, stop."""
        if self.state is not State.DEAD:
            self._become(State.DRAINING)
        self._idle.clear()
        if self._jobs:
            try:
                await asyncio.wait_for(self._idle.wait(), grace_seconds)
            except TimeoutError:
                log.warning("grace period over", unfinished=len(self._jobs))
                for job in list(self._jobs):
                    job.fail(Draining())
        self._queue.close()
        for worker in self._workers:
            await self._loop.run_in_executor(None, worker.join)
        if self._reminder is not None:
            self._reminder.cancel()
        self._delivery.close()

    def _committed(self, job: Job) -> None:
        self._metrics.billable(job.request.operation, job.usage)

    def _started(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.stage is Stage.WAITING:
                job.start()
                self._metrics.queue_depth.labels(job.request.priority.value).dec()
                self._metrics.running_requests.inc()
                self._metrics.queue_wait_seconds.labels(job.request.operation.value).observe(job.queue_seconds)
        self._positions.soon()

    async def _remind(self) -> None:
        while True:
            await asyncio.sleep(_REMINDER_SECONDS)
            self._positions.soon()
            for job in self._jobs:
                job.remind(self._outlook.remaining(job), _PROGRESS_EVERY_SECONDS)

    def _picture(self, job: Job, picture: Picture) -> None:
        self._delivery.picture(job, picture, self._outlook.cost)

    def _died(self, error: BaseException) -> None:
        """The accelerator is lost: every job ends, health says so, and the process exits for a new one to start."""
        for job in list(self._jobs):
            job.fail(Internal(f"the accelerator failed, request {job.request.request_id}"))
        self._become(State.DEAD)
