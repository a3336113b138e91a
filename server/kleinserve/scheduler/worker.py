"""The engine thread: at every step boundary jobs join, leave and finish. Never waits for a reader.

Everything that touches a job's events or a codec is handed to the event loop (`hand`).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kleinserve.core import Pixels, Preview, PreviewFormat, Progress
from kleinserve.engine import memory
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine
from kleinserve.errors import AcceleratorOutOfMemory, Internal, KleinError
from kleinserve.metrics import Metrics
from kleinserve.scheduler import policy
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.job import Job
from kleinserve.scheduler.queue import WaitingRoom

_RETRY_SECONDS = 5.0  # after running out of memory: time for what ran beside it to finish

log = structlog.get_logger()


@dataclass(frozen=True)
class Hands:
    """What the engine thread hands to the event loop; each is safe to call from it and returns at once."""

    started: Callable[[list[Job]], None]
    progress: Callable[[Job, Progress], None]
    preview: Callable[[Job, Pixels | Preview, int], None]  # with its step
    picture: Callable[[Job, Picture], None]
    failed: Callable[[Job, KleinError], None]
    died: Callable[[BaseException], None]


class Worker(threading.Thread):
    """Steps jobs until told to stop. A failure that leaves the device unusable ends it through `hands.died`."""

    def __init__(
        self, engine: Engine, room: WaitingRoom, cost: Cost, metrics: Metrics, hands: Hands, step_tokens_max: int
    ):
        super().__init__(name="engine", daemon=True)
        self._engine, self._room, self._cost, self._metrics = engine, room, cost, metrics
        self._hands, self._step_tokens_max = hands, step_tokens_max
        self._running: list[Job] = []
        self._is_stopping = False

    @property
    def running(self) -> list[Job]:
        """The jobs in the running set; a copy."""
        return list(self._running)

    def stop(self) -> None:
        """End after the present step; jobs still there are left as they are."""
        with self._room.changed:
            self._is_stopping = True
            self._room.changed.notify()

    def run(self) -> None:
        try:
            while self._wait():
                self.tick()
        except BaseException as error:
            log.exception("engine died")
            self._hands.died(error)

    def _wait(self) -> bool:
        with self._room.changed:
            self._room.changed.wait_for(lambda: self._is_stopping or self._running or len(self._room))
            return not self._is_stopping

    def tick(self) -> None:
        """One step boundary and one step: leave, join, step, finish."""
        self._running = [job for job in self._running if not job.is_gone]
        self._room.remove([job for job in self._room.waiting() if job.is_gone])
        picked = policy.pick(self._running, self._room.waiting(), self._step_tokens_max)
        self._join([job for job in picked if job not in self._running])
        if self._running:
            self._step()
            self._finish([job for job in self._running if job.drawing.is_denoised])

    def _join(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        self._room.remove(jobs)
        started = time.perf_counter()
        self._hands.started(jobs)
        begun = self._together(lambda some: self._engine.begin([job.drawing for job in some]), jobs)
        self._cost.begin.observe(time.perf_counter() - started, len(jobs))
        for job in begun:
            self._metrics.begun(job.drawing)
        self._running += begun

    def _step(self) -> None:
        started = time.perf_counter()
        stepped = self._together(lambda some: self._engine.step([job.drawing for job in some]), self._running)
        seconds = time.perf_counter() - started
        self._running = stepped
        tokens = sum(job.tokens for job in stepped)
        if not stepped:
            return
        self._cost.step.observe(seconds, tokens)
        self._metrics.stepped(seconds, len(stepped), tokens)
        for job in stepped:
            job.denoise_seconds += seconds
            job.max_step_requests = max(job.max_step_requests, len(stepped))
            self._report(job)

    def _report(self, job: Job) -> None:
        drawing, wanted = job.drawing, job.request.preview
        done, total = drawing.steps_done, drawing.total_steps
        remaining = self._cost.steps(job.tokens, total - done) + self._cost.finish(job.request.size.pixels)
        self._hands.progress(job, Progress(done, total, remaining))
        if not wanted.wants(done, total):
            return
        if wanted.format is PreviewFormat.LATENT:
            data, shape = self._engine.latent(drawing)
            self._hands.preview(job, Preview(done, total, wanted.format, *shape, data), done)
        else:
            self._hands.preview(job, self._engine.preview(drawing), done)

    def _finish(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        pictures: dict[Job, Picture] = {}
        started = time.perf_counter()
        decoded = self._together(lambda some: pictures.update(self._decode(some)), jobs)
        seconds = time.perf_counter() - started
        self._cost.decode.observe(seconds, sum(job.request.size.pixels for job in jobs))
        self._metrics.stage_seconds.labels("decode").observe(seconds)
        second = [job for job in decoded if job.drawing.needs_second]
        second = self._together(lambda some: self._begin_second(some, pictures), second)
        self._running = [job for job in self._running if job not in jobs or job in second]
        for job in decoded:
            job.decode_seconds += seconds
            if not job.drawing.needs_second and job not in second and not job.is_gone:
                self._hands.picture(job, pictures[job])

    def _begin_second(self, jobs: list[Job], pictures: dict[Job, Picture]) -> None:
        for job in jobs:
            if job.drawing.needs_second:
                self._engine.begin_second(job.drawing, pictures[job])

    def _decode(self, jobs: list[Job]) -> dict[Job, Picture]:
        drawings = [job.drawing for job in jobs]
        try:
            return dict(zip(jobs, self._engine.decode(drawings), strict=True))
        except Exception as error:
            if len(jobs) > 1 or not memory.is_exhausted(error):
                raise
        memory.release()
        return dict(zip(jobs, self._engine.decode(drawings, tiled=True), strict=True))

    def _together(self, work: Callable[[list[Job]], object], jobs: list[Job]) -> list[Job]:
        """Do `work` for all jobs at once; where that fails, for each alone, and only what fails alone fails.

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
                self._hands.failed(jobs[0], _answer(error, jobs[0]))
                return []
            log.warning("trying alone what failed together", requests=len(jobs), error=str(error)[:200])
        memory.release()
        return [job for single in jobs for job in self._together(work, [single])]


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
