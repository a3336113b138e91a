"""Pictures to encoded previews and final files, in a small pool. Runs on the event loop; knows no queue, no gRPC."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from kleinserve import __version__
from kleinserve.codec import image, preview
from kleinserve.codec.provenance import Provenance
from kleinserve.core import EncodedImage, Pixels, Preview
from kleinserve.engine.alpha import Picture
from kleinserve.engine.drawing import resolve
from kleinserve.errors import Draining, Internal, KleinError
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.job import Job, Stage

T = TypeVar("T")
log = structlog.get_logger()


class Delivery:
    """Encodes what the engine drew and posts it to its job. `model`: the name that provenance carries."""

    def __init__(self, model: str, threads: int, metrics: Metrics):
        self._model, self._metrics = model, metrics
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")
        self._encoding: dict[Job, asyncio.Task[None]] = {}  # a job's preview being encoded
        self._newest: dict[Job, tuple[int, int, Pixels]] = {}  # the preview that is encoded after it
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def pooled(self, function: Callable[..., T], *arguments: object) -> T:
        """The function's result, computed in the pool. Raises: Draining once closed."""
        try:
            return await self._loop.run_in_executor(self._pool, function, *arguments)
        except (asyncio.CancelledError, RuntimeError):
            if self._is_closed:
                raise Draining() from None
            raise

    def preview(self, job: Job, drawn: Pixels | Preview, step: int) -> None:
        """Encode a step's picture, one at a time per job; of those that wait for it the newest wins."""
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
                data, width, height = await self.pooled(preview.encode, pixels, wanted.format, wanted.max_edge)
                job.post(Preview(step, total, wanted.format, width, height, 0, data))
        finally:
            del self._encoding[job]

    def picture(self, job: Job, picture: Picture, cost: Cost) -> None:
        """Encode the final picture and complete the job with it, or fail it."""
        if not job.is_gone:
            self._spawn(self._encode(job, picture, cost))

    async def _encode(self, job: Job, picture: Picture, cost: Cost) -> None:
        """The final file; the last preview goes first."""
        try:
            encoded, job.encode_seconds = await self.pooled(self._encoded, job, picture)
            error = cost.observe("encode", job.load.output_megapixels, job.encode_seconds)
            self._metrics.ran("encode", job.encode_seconds, error)
            if job in self._encoding:
                await asyncio.wait([self._encoding[job]])
            job.complete(encoded)
        except KleinError as error:
            job.fail(error)
        except Exception as error:
            log.error("encoding failed", request_id=job.request.request_id, exc_info=error)
            job.fail(Internal(f"internal error, request {job.request.request_id}"))

    def _encoded(self, job: Job, picture: Picture) -> tuple[EncodedImage, float]:
        """The file, and the seconds that making it took, without its wait for the pool."""
        started, request = time.perf_counter(), job.request
        result = resolve(job.drawing, picture)
        made_by = Provenance(self._model, request.seed, request.steps, __version__, request.prompt)
        encoded = image.encode(result.pixels, request.output, result.alpha_method, made_by)
        return encoded, time.perf_counter() - started

    def forget(self, job: Job) -> None:
        """Encode no more previews of a job that has ended."""
        self._newest.pop(job, None)

    def close(self) -> None:
        """Stop; what is being encoded is not delivered."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
