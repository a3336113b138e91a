"""A job: one request's life between its caller and the engine. Everything runs on the event loop but `is_gone`.

The engine never waits for a reader: events that the reader has not taken yet are replaced by newer ones of their kind,
and only the few that must arrive are kept.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from enum import Enum

from kleinserve.core import (
    MEGAPIXEL,
    Accepted,
    Completed,
    EncodedImage,
    Event,
    ImageChunk,
    ImageHeader,
    Preview,
    Progress,
    Queued,
    Request,
    Started,
    Timings,
    Usage,
)
from kleinserve.engine.drawing import Drawing
from kleinserve.engine.engine import Engine
from kleinserve.errors import KleinError
from kleinserve.scheduler.cost import Load

_REPLACEABLE = (Queued, Progress, Preview)


def load_of(engine: Engine, drawing: Drawing) -> Load:
    """What a drawing asks of every stage."""
    request = drawing.request
    return Load(
        work=engine.work(drawing),
        tokens=engine.tokens(drawing),
        output_megapixels=request.size.pixels / MEGAPIXEL,
        reference_megapixels=sum(size.pixels for size in request.reference_sizes) / MEGAPIXEL,
        passes=drawing.passes if drawing.on_white is None else 1,
    )


class Stage(Enum):
    """Where a job is; the value is the `where` of klein_cancelled_total."""

    WAITING = "queue"
    RUNNING = "step"
    DELIVERING = "delivery"
    OVER = "over"


class Job:
    """One admitted request. `on_commit` makes the image billable.

    `deadline`: monotonic seconds or None. `message_bytes`: of the request as it came, which gRPC keeps until its end.
    """

    def __init__(
        self,
        request: Request,
        drawing: Drawing,
        load: Load,
        usage: Usage,
        deadline: float | None,
        message_bytes: int,
        on_commit: Callable[["Job"], None],
    ):
        self.request, self.drawing, self.usage, self.deadline = request, drawing, usage, deadline
        self.load = load
        self.held_bytes = message_bytes + sum(len(r.pixels.data) for r in request.references)
        self.stage = Stage.WAITING
        self.is_gone = False  # read by the engine thread at every step boundary
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.first_preview: float | None = None
        self.worked_seconds = 0.0  # on what the thread beside the steps does with it now
        self.denoise_seconds = self.decode_seconds = self.encode_seconds = 0.0
        self.max_step_requests = 0
        self.previews_skipped = 0
        self.expiry: asyncio.TimerHandle | None = None  # ends it at its deadline
        self._skipped_since_sent = 0
        self._on_commit = on_commit
        self._events: deque[Event] = deque()
        self._encoded: EncodedImage | None = None
        self._error: KleinError | None = None
        self._changed = asyncio.Event()
        self._position: int | None = None
        self._told = self.submitted

    @property
    def is_begun(self) -> bool:
        """Whether its prompt and references are encoded."""
        return self.drawing.row is not None

    @property
    def steps_left(self) -> int:
        return self.drawing.total_steps - self.drawing.steps_done

    @property
    def queue_seconds(self) -> float:
        return (self.started or time.monotonic()) - self.submitted

    def post(self, event: Event) -> None:
        """Hand an event to the reader; a newer Queued, Progress or Preview takes the place of one not yet taken."""
        if self.stage is Stage.OVER:
            return
        if isinstance(event, _REPLACEABLE):
            for old in [e for e in self._events if type(e) is type(event)]:
                self._events.remove(old)
                if isinstance(old, Preview):
                    self.skip_preview()
        self._events.append(event)
        self._told = time.monotonic()
        self._changed.set()

    def skip_preview(self) -> None:
        """Count a preview that the reader was too slow for."""
        self.previews_skipped += 1
        self._skipped_since_sent += 1

    def start(self) -> None:
        """The job's first step is scheduled."""
        if self.stage is Stage.WAITING:
            self.stage = Stage.RUNNING
            self.started = time.monotonic()
            for old in [e for e in self._events if isinstance(e, Queued)]:
                self._events.remove(old)
            self.post(Started(self.queue_seconds))

    def queued(self, position: int, estimated_wait: float, every_seconds: float) -> None:
        """Tell the position when it has changed, or when nothing was told for `every_seconds`."""
        if self.stage is Stage.WAITING and (
            position != self._position or time.monotonic() - self._told >= every_seconds
        ):
            self._position = position
            self.post(Queued(position, estimated_wait))

    def remind(self, estimated_remaining: float, every_seconds: float) -> None:
        """Repeat the progress when nothing was told for `every_seconds`."""
        if self.stage is Stage.RUNNING and time.monotonic() - self._told >= every_seconds:
            self.post(Progress(self.drawing.steps_done, self.drawing.total_steps, estimated_remaining))

    def complete(self, encoded: EncodedImage) -> None:
        """The final image is ready to be delivered."""
        if self.stage is not Stage.OVER:
            self.stage = Stage.DELIVERING
            self._encoded = encoded
            self._changed.set()

    def fail(self, error: KleinError) -> None:
        """End the stream with `error`, unless it is over; the engine drops the job at the next step."""
        if self.stage is Stage.OVER:
            return
        self.is_gone = True
        self._error = error
        self._events.clear()
        self._changed.set()

    def leave(self) -> Stage:
        """The reader has gone or the stream has ended: nothing more is done for it. Returns the stage it left."""
        left, self.stage = self.stage, Stage.OVER
        if self.expiry is not None:
            self.expiry.cancel()  # or the loop would hold the job until its deadline
        self.is_gone = True
        self._events.clear()
        self._encoded = None
        return left

    async def events(self, accepted: Accepted, chunk_bytes: int) -> AsyncIterator[Event]:
        """The stream in contract order, `accepted` first. Raises: the error that ended the job."""
        yield accepted
        while self._encoded is None or self._events:
            if self._error is not None:
                raise self._error
            if self._events:
                yield self._taken(self._events.popleft())
                continue
            self._changed.clear()
            await self._changed.wait()
        image = self._encoded
        yield ImageHeader(image.format, image.size, image.alpha_method, len(image.data), image.sha256)
        for offset in range(0, len(image.data), chunk_bytes):
            if self._error is not None:
                raise self._error
            if offset + chunk_bytes >= len(image.data):
                self._on_commit(self)  # before the last chunk: whoever has every chunk has been billed
            yield ImageChunk(offset, image.data[offset : offset + chunk_bytes])
        yield Completed(self.usage, self._timings(), self.max_step_requests, self.previews_skipped)

    def _taken(self, event: Event) -> Event:
        if not isinstance(event, Preview):
            return event
        if self.first_preview is None:
            self.first_preview = time.monotonic()
        skipped, self._skipped_since_sent = self._skipped_since_sent, 0
        return replace(event, skipped=skipped)

    def _timings(self) -> Timings:
        return Timings(
            queue=max(0.0, self.queue_seconds - self.drawing.text_seconds - self.drawing.references_seconds),
            text=self.drawing.text_seconds,
            references=self.drawing.references_seconds,
            denoise=self.denoise_seconds,
            decode=self.decode_seconds,
            encode=self.encode_seconds,
        )
