"""The event loop's side: admission, encoding in a small pool, reminders, drain. Knows no gRPC."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, TypeVar

import structlog

from kleinserve import __version__
from kleinserve.codec import image, preview, reference
from kleinserve.codec.provenance import Provenance
from kleinserve.config import Config
from kleinserve.core import (
    Accepted,
    EncodedImage,
    Operation,
    Pixels,
    Preview,
    Reference,
    Request,
    Size,
)
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine, resolve
from kleinserve.errors import DeadlinePassed, Draining, Internal, KleinError, NotReady
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.job import Job, Stage
from kleinserve.scheduler.queue import WaitingRoom
from kleinserve.scheduler.worker import Hands, Worker
from kleinserve.usage import price

_QUEUED_EVERY_SECONDS = 5.0
_PROGRESS_EVERY_SECONDS = 10.0
_REMINDER_SECONDS = 0.5  # how often it is looked whether one of the two is due
_RETRY_SECONDS = 2.0  # NOT_READY and DRAINING: another replica, or this one soon

T = TypeVar("T")
log = structlog.get_logger()


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Scheduler:
    """Admits requests, feeds the engine thread, and turns what it hands back into events.

    Created on the running event loop; every method is called on it.
    """

    def __init__(self, engine: Engine, config: Config, metrics: Metrics, on_state: Callable[[State], None]):
        self._engine, self._config, self._metrics, self._on_state = engine, config, metrics, on_state
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(config.codec_threads, thread_name_prefix="codec")
        self._room = WaitingRoom(config.queue_requests_max, config.queue_bytes_max)
        self._cost = Cost()
        self._price = price.configured(config)
        self._jobs: set[Job] = set()
        self._encoding: dict[Job, asyncio.Task[None]] = {}  # a job's preview being encoded
        self._newest: dict[Job, tuple[int, int, Pixels]] = {}  # the preview that is encoded after it
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self.state = State.STARTING
        hands = Hands(
            started=self._hand(self._started),
            progress=self._hand(lambda job, progress: job.post(progress)),
            preview=self._hand(self._preview),
            picture=self._hand(self._picture),
            failed=self._hand(lambda job, error: job.fail(error)),
            died=self._hand(self._died),
        )
        self._worker = Worker(engine, self._room, self._cost, metrics, hands, config.step_tokens_max)

    def _hand(self, function: Callable[..., None]) -> Callable[..., None]:
        """`function` as the engine thread may call it: run soon, on the event loop."""

        def hand(*arguments: Any) -> None:
            self._loop.call_soon_threadsafe(function, *arguments)

        return hand

    async def start(self) -> None:
        """Make a real warm-up image, then serve. Raises what the warm-up raised."""
        is_small = self._engine.facts.device == "cpu"  # a CPU needs no compiling and no allocator warming
        size = Size(64, 64) if is_small else self._engine.facts.default_size
        facts = self._engine.facts
        steps = 1 if is_small else facts.default_steps
        request = Request(
            "warm-up", Operation.GENERATE, "a red circle", (), size, 0, steps, facts.default_guidance_scale
        )
        await self._loop.run_in_executor(self._pool, self._engine.warm_up, request)
        self._worker.start()
        self._spawn(self._remind())
        self._become(State.READY)

    def _become(self, state: State) -> None:
        self.state = state
        self._on_state(state)

    def check(self, held_bytes: int) -> None:
        """Raise NotReady, Draining or QueueFull now where a request holding `held_bytes` cannot be admitted."""
        if self.state is State.STARTING:
            raise NotReady("the warm-up image is not made yet", retry_seconds=_RETRY_SECONDS)
        if self.state is not State.READY:
            raise Draining("this server is shutting down", retry_seconds=_RETRY_SECONDS)
        self._room.check(held_bytes, self._estimated_wait(self._room.waiting()))

    async def decode(self, references: Sequence[bytes]) -> tuple[Reference, ...]:
        """The references as the model sees them, decoded in the pool. Raises: a RefusedReference."""
        keep_alpha = self._engine.facts.has_native_alpha

        def one(index: int, data: bytes) -> Reference:
            pixels = reference.decode(index, data, keep_alpha=keep_alpha)
            digest = hashlib.sha256(f"{pixels.size}/{pixels.channels}/".encode() + pixels.data).digest()
            return Reference(pixels, digest)

        return tuple([await self._pooled(one, index, data) for index, data in enumerate(references)])

    async def submit(self, request: Request, deadline: float | None) -> tuple[Job, Accepted]:
        """Admit a request; `deadline` in monotonic seconds.

        Raises: NotReady, Draining, QueueFull, DeadlinePassed.
        """
        drawing = await self._pooled(self._engine.drawing, request)
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlinePassed("the deadline had passed when the request could be admitted")
        tokens = self._engine.tokens(drawing)
        held = len(request.prompt) + sum(len(r.pixels.data) for r in request.references)
        usage = price.usage(request.size, request.reference_sizes, self._price, billable=True)
        job = Job(request, drawing, tokens, held, usage, deadline, self._committed)
        self.check(held)
        waited_for = self._room.waiting()
        accepted = Accepted(
            seed=request.seed,
            size=request.size,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            model=self._engine.facts.name,
            reference_sizes=request.reference_sizes,
            prompt_tokens=min(drawing.prompt.count, self._engine.facts.prompt_tokens_max),
            prompt_truncated=drawing.prompt.is_truncated,
            estimated_wait=self._estimated_wait(waited_for),
            estimated_duration=self._cost.whole(tokens, drawing.total_steps, request.size.pixels),
            estimated_usage=price.usage(request.size, request.reference_sizes, self._price, billable=False),
        )
        self._jobs.add(job)
        if deadline is not None:
            passed = DeadlinePassed("the deadline passed before the image was finished")
            self._loop.call_later(deadline - time.monotonic(), job.fail, passed)
        is_busy = bool(self._worker.running)
        self._room.put(job)
        self._metrics.queue_depth.labels(request.priority.value).inc()
        if is_busy:
            self._announce()
        return job, accepted

    def leave(self, job: Job) -> Stage:
        """The job's stream has ended, however: forget it. Returns the stage it was in."""
        stage = job.leave()
        self._jobs.discard(job)
        self._newest.pop(job, None)
        self._room.remove([job])
        if stage is Stage.WAITING:
            self._metrics.queue_depth.labels(job.request.priority.value).dec()
            self._announce()
        else:
            self._metrics.running_requests.dec()
        if job.first_preview is not None:
            seconds = job.first_preview - job.submitted
            self._metrics.time_to_first_preview_seconds.labels(job.request.operation.value).observe(seconds)
        if not self._jobs:
            self._idle.set()
        return stage

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new requests, let the admitted ones finish for `grace_seconds`, end the rest with DRAINING, stop."""
        self._become(State.DRAINING)
        self._idle.clear()
        if self._jobs:
            try:
                await asyncio.wait_for(self._idle.wait(), grace_seconds)
            except TimeoutError:
                log.warning("grace period over", unfinished=len(self._jobs))
                for job in list(self._jobs):
                    job.fail(Draining("this server is shutting down", retry_seconds=_RETRY_SECONDS))
        if self._worker.is_alive():
            self._worker.stop()
            await self._loop.run_in_executor(None, self._worker.join)
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _committed(self, job: Job) -> None:
        self._metrics.billable(job.request.operation, job.usage)

    def _started(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.stage is Stage.WAITING:
                job.start()
                self._metrics.queue_depth.labels(job.request.priority.value).dec()
                self._metrics.running_requests.inc()
                self._metrics.queue_wait_seconds.labels(job.request.operation.value).observe(job.queue_seconds)
        self._announce()

    def _announce(self) -> None:
        """Tell every waiting job its position, where it has changed or is due."""
        waiting = self._room.waiting()
        for position, job in enumerate(waiting):
            job.queued(position, self._estimated_wait(waiting[:position]), _QUEUED_EVERY_SECONDS)

    def _estimated_wait(self, before: Sequence[Job]) -> float:
        """Seconds until a job behind `before` begins, by the measured rates."""
        ahead = [*self._worker.running, *before]
        steps = sum(self._cost.steps(job.tokens, job.remaining_steps) for job in ahead)
        return steps + sum(self._cost.decode.seconds * job.request.size.pixels for job in ahead)

    async def _remind(self) -> None:
        while True:
            await asyncio.sleep(_REMINDER_SECONDS)
            self._announce()
            for job in self._jobs:
                left = self._cost.steps(job.tokens, job.remaining_steps) + self._cost.finish(job.request.size.pixels)
                job.remind(left, _PROGRESS_EVERY_SECONDS)

    def _preview(self, job: Job, drawn: Pixels | Preview, step: int) -> None:
        """Encode a step's picture in the pool, one at a time per job; of those that wait for it the newest wins."""
        if isinstance(drawn, Preview):
            job.post(drawn)
            return
        if job.stage is not Stage.RUNNING:
            return
        if job in self._newest:
            job.skip_preview()
        self._newest[job] = (step, job.drawing.total_steps, drawn)
        if job not in self._encoding:
            self._encoding[job] = self._spawn(self._encode_previews(job))

    async def _encode_previews(self, job: Job) -> None:
        wanted = job.request.preview
        try:
            while job in self._newest:
                step, total, pixels = self._newest.pop(job)
                data, width, height = await self._pooled(preview.encode, pixels, wanted.format, wanted.max_edge)
                job.post(Preview(step, total, wanted.format, width, height, 0, data))
        finally:
            del self._encoding[job]

    def _picture(self, job: Job, picture: Picture) -> None:
        self._spawn(self._encode(job, picture))

    async def _encode(self, job: Job, picture: Picture) -> None:
        """The final file, made in the pool; the last preview goes first."""
        started = time.perf_counter()
        try:
            encoded = await self._pooled(self._encoded, job, picture)
            job.encode_seconds = time.perf_counter() - started
            self._cost.encode.observe(job.encode_seconds, job.request.size.pixels)
            self._metrics.stage_seconds.labels("encode").observe(job.encode_seconds)
            if job in self._encoding:
                await asyncio.wait([self._encoding[job]])
            job.complete(encoded)
        except KleinError as error:
            job.fail(error)
        except Exception as error:
            log.error("encoding failed", request_id=job.request.request_id, exc_info=error)
            job.fail(Internal(f"internal error, request {job.request.request_id}"))

    def _encoded(self, job: Job, picture: Picture) -> EncodedImage:
        request = job.request
        result = resolve(job.drawing, picture)
        made_by = Provenance(self._engine.facts.name, request.seed, request.steps, __version__, request.prompt)
        return image.encode(result.pixels, request.output, result.alpha_method, made_by)

    def _died(self, error: BaseException) -> None:
        """The accelerator is lost: every job ends, health says so, and the process exits for a new one to start."""
        for job in list(self._jobs):
            job.fail(Internal(f"the accelerator failed, request {job.request.request_id}"))
        self._become(State.DEAD)

    async def _pooled(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._pool, function, *arguments)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
