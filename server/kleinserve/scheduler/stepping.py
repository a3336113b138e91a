"""The steps: at every boundary the policy picks who shares the next one. Never waits for a reader or a codec."""

import time
from collections.abc import Sequence

from kleinserve.core import Preview, PreviewFormat, Progress
from kleinserve.engine.engine import Engine
from kleinserve.metrics import Metrics
from kleinserve.scheduler.job import Job, Stage
from kleinserve.scheduler.outlook import Outlook
from kleinserve.scheduler.worker import Hands, together


class Stepping:
    """What the stepping thread chooses and does. `tokens_max`: of one step; a job larger than it steps alone."""

    def __init__(self, engine: Engine, outlook: Outlook, metrics: Metrics, hands: Hands, tokens_max: int):
        self._engine, self._outlook, self._metrics, self._hands = engine, outlook, metrics, hands
        self._tokens_max = tokens_max

    def choose(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of the next step."""
        ready = [job for job in jobs if job.is_begun and not job.drawing.is_denoised]
        return self._outlook.picked(ready, time.monotonic(), self._tokens_max)

    def step(self, jobs: list[Job]) -> None:
        """Advance the jobs by one step, and hand out what it shows."""
        if waiting := [job for job in jobs if job.stage is Stage.WAITING]:
            self._hands.started(waiting)
        tokens, is_shared = sum(job.load.tokens for job in jobs), True

        def split() -> None:
            nonlocal is_shared
            is_shared, self._tokens_max = False, min(self._tokens_max, tokens - 1)  # not the same again at every step
            self._metrics.step_tokens_max.set(self._tokens_max)

        started = time.perf_counter()
        step = self._engine.step
        stepped = together(lambda some: step([job.drawing for job in some]), jobs, self._hands.failed, split)
        seconds = time.perf_counter() - started
        if is_shared and stepped:
            error = self._outlook.cost.observe("step", sum(job.load.work for job in stepped), seconds)
            self._metrics.ran("step", seconds, error)
            self._metrics.stepped(len(stepped), sum(job.load.tokens for job in stepped))
        self._outlook.stepped(stepped, seconds)
        for job in stepped:
            job.denoise_seconds += seconds
            job.max_step_requests = max(job.max_step_requests, len(stepped) if is_shared else 1)
            together(lambda some: self._report(some[0]), [job], self._hands.failed)

    def _report(self, job: Job) -> None:
        drawing, wanted = job.drawing, job.request.preview
        done, total = drawing.steps_done, drawing.total_steps
        self._hands.progress(job, Progress(done, total, self._outlook.remaining(job)))
        if not wanted.wants(done, total):
            return
        if wanted.format is PreviewFormat.LATENT:
            data, shape = self._engine.latent(drawing)
            self._hands.preview(job, Preview(done, total, wanted.format, *shape, data), done)
        else:
            self._hands.preview(job, self._engine.preview(drawing), done)
