"""Pictures to encoded previews and final files, in threads of its own. On the event loop; knows no queue, no gRPC."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from kleinserve import __version__
from kleinserve.codec import image, preview
from kleinserve.codec.provenance import Provenance
from kleinserve.core import AlphaMethod, EncodedImage, Pixels, Preview, PreviewOptions, Progress, Request
from kleinserve.metrics import Metrics

T = TypeVar("T")
Drawn = Callable[[], Pixels | Preview]  # may wait for the device
log = structlog.get_logger()


class Encoding:
    """Encodes what the engine drew. `model`: the name that provenance carries."""

    def __init__(self, model: str, threads: int, metrics: Metrics):
        self._model, self._metrics = model, metrics
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")
        self._newest: dict[Hashable, tuple[Progress, Drawn, int]] = {}  # previews that are encoded next
        self._encoding: dict[Hashable, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """The function's result, computed in a codec thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def preview(self, request: Request, drawn: Drawn, at: Progress, post: Callable[[Preview], None]) -> None:
        """Encode what a step showed and `post` it, one at a time per request; of those that wait the newest wins."""
        waiting = self._newest.get(request.request_id)
        skipped = 0 if waiting is None else waiting[2] + 1
        self._newest[request.request_id] = (at, drawn, skipped)
        if request.request_id not in self._encoding:
            self._encoding[request.request_id] = self._spawn(self._encode_previews(request, post))

    async def _encode_previews(self, request: Request, post: Callable[[Preview], None]) -> None:
        key = request.request_id
        try:
            while key in self._newest:
                at, drawn, skipped = self._newest.pop(key)
                try:
                    post(await self.run(_encoded, drawn, request.options.preview, at, skipped))
                except Exception:  # a preview is not worth its image
                    log.exception("preview failed", request_id=key, step=at.step)
                    self._metrics.previews.labels("failed").inc()
        finally:
            del self._encoding[key]

    async def file(
        self, request: Request, resolve: Callable[[], tuple[Pixels, AlphaMethod]]
    ) -> tuple[EncodedImage, float]:
        """The final file and the seconds that making it took; the last preview goes first. Raises: AlphaUnavailable."""
        encoded, seconds = await self.run(self._file, request, resolve)
        if request.request_id in self._encoding:
            await asyncio.wait([self._encoding[request.request_id]])
        return encoded, seconds

    def _file(self, request: Request, resolve: Callable[[], tuple[Pixels, AlphaMethod]]) -> tuple[EncodedImage, float]:
        started, options = time.perf_counter(), request.options
        pixels, alpha_method = resolve()
        made_by = Provenance(self._model, options.seed, options.steps, __version__, request.prompt)
        encoded = image.encode(pixels, options.output, alpha_method, made_by)
        return encoded, time.perf_counter() - started

    def forget(self, request_id: str) -> None:
        """Encode no more previews of a request that has ended."""
        self._newest.pop(request_id, None)

    def close(self) -> None:
        """Stop; what is being encoded is not delivered."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _encoded(drawn: Drawn, wanted: PreviewOptions, at: Progress, skipped: int) -> Preview:
    picture = drawn()
    if isinstance(picture, Preview):  # a latent is no picture
        return replace(picture, skipped=skipped)
    data, width, height = preview.encode(picture, wanted.format, wanted.max_edge)
    return Preview(at.step, at.total_steps, wanted.format, width, height, 0, data, skipped)
