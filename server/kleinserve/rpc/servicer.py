"""The services: a message becomes a job, its events become the stream. Nothing here knows the engine."""

import asyncio
import time
import uuid
from functools import partial
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import Message
from klein.v1 import image_pb2, image_pb2_grpc, usage_pb2, usage_pb2_grpc

from kleinserve import __version__
from kleinserve.config import Config
from kleinserve.core import (
    EDGE_MULTIPLE,
    Accepted,
    Completed,
    Event,
    ImageFormat,
    ModelFacts,
    Operation,
    Preview,
    PreviewFormat,
)
from kleinserve.errors import Cancelled, DeadlinePassed, Internal, KleinError, NotImplementedHere, ReaderStalled
from kleinserve.metrics import Metrics
from kleinserve.rpc import events, requests
from kleinserve.rpc.answer import refuse
from kleinserve.scheduler.job import Job, Stage
from kleinserve.scheduler.scheduler import Scheduler

_MARGIN_SHARE = 0.1  # of a short deadline: the margin is not to eat it up

log = structlog.get_logger()
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ImageServicer(image_pb2_grpc.ImageServiceServicer):
    """klein.v1.ImageService. Streams are written, not yielded as the stubs' types say: a write can be timed out."""

    def __init__(self, scheduler: Scheduler, facts: ModelFacts, config: Config, metrics: Metrics):
        self._scheduler, self._facts, self._config, self._metrics = scheduler, facts, config, metrics

    async def Generate(  # type: ignore[override]
        self, request: image_pb2.GenerateRequest, context: Context
    ) -> None:
        await self._image(Operation.GENERATE, request, context)

    async def Edit(  # type: ignore[override]
        self, request: image_pb2.EditRequest, context: Context
    ) -> None:
        await self._image(Operation.EDIT, request, context)

    async def Attach(  # type: ignore[override]
        self, request: image_pb2.AttachRequest, context: Context
    ) -> None:
        await refuse(context, NotImplementedHere("Attach needs idempotency keys, which are not served yet"), _new_id())

    async def Cancel(self, request: image_pb2.CancelRequest, context: Context) -> image_pb2.CancelResponse:
        await refuse(context, NotImplementedHere("Cancel needs idempotency keys, which are not served yet"), _new_id())
        return image_pb2.CancelResponse()

    async def GetCapabilities(
        self, request: image_pb2.GetCapabilitiesRequest, context: Context
    ) -> image_pb2.GetCapabilitiesResponse:
        return capabilities(self._facts, self._config)

    async def _image(self, operation: Operation, message: Message, context: Context) -> None:
        """One request from its message to its status, counted and logged, whatever happens."""
        request_id, started = _new_id(), time.monotonic()
        stream = _Stream(self._scheduler, self._config, self._metrics, request_id)
        error: KleinError | None = None
        try:
            await self._stream(stream, message, context)
        except KleinError as refused:
            error = refused
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # The caller went away; InternalError: while a write was blocked. gRPC ends a deadline in the same way.
            is_late = stream.deadline is not None and time.monotonic() >= stream.deadline
            if not stream.is_complete:
                error = DeadlinePassed("the deadline passed") if is_late else Cancelled("the caller went away")
        except Exception:
            log.exception("request failed", request_id=request_id)
            error = Internal(f"internal error, request {request_id}")
        stage = self._scheduler.leave(stream.job) if stream.job else None
        if stream.job is not None:
            self._metrics.previews.labels("skipped").inc(stream.job.previews_skipped)
        if isinstance(error, Cancelled) and stage in (Stage.WAITING, Stage.RUNNING, Stage.DELIVERING):
            self._metrics.cancelled.labels(stage.value).inc()
        code, reason = (error.status, error.reason) if error else ("OK", "")
        has_deadline = context.time_remaining() is not None
        self._metrics.finished(operation, code, reason, time.monotonic() - started, has_deadline=has_deadline)
        self._log(stream, operation, code, reason, time.monotonic() - started, context)
        if error is not None:
            error.__traceback__ = None  # its frames hold the references until the reader has taken the status
            await self._refuse(context, error, request_id)

    async def _refuse(self, context: Context, error: KleinError, request_id: str) -> None:
        """End the RPC with `error`. A reader that does not take it, gRPC keeps it for; the request's memory goes."""
        try:
            async with asyncio.timeout(self._config.reader_stall_seconds):
                await refuse(context, error, request_id)
        except TimeoutError:
            raise asyncio.CancelledError from None  # ends the handler; the status is under way

    async def _stream(self, stream: "_Stream", message: Message, context: Context) -> None:
        self._scheduler.check(0)
        remaining = context.time_remaining()
        if remaining is not None:
            margin = min(self._config.deadline_margin_seconds, _MARGIN_SHARE * remaining)
            stream.deadline = time.monotonic() + remaining - margin
        job, accepted = await self._admitted(stream, message)
        await context.send_initial_metadata((("klein-request-id", stream.request_id),))
        async for happened in job.events(accepted, self._config.chunk_bytes):
            await stream.write(context, happened)

    async def _admitted(self, stream: "_Stream", message: Message) -> tuple[Job, Accepted]:
        """The message's job. What copies of its references were needed goes with this frame."""
        draft = requests.draft(message, self._facts, self._config)
        request = partial(draft.request, stream.request_id, self._facts)
        stream.job, accepted = await self._scheduler.admitted(
            draft.references, request, stream.deadline, message.ByteSize()
        )
        return stream.job, accepted

    def _log(
        self, stream: "_Stream", operation: Operation, code: str, reason: str, seconds: float, context: Context
    ) -> None:
        facts: dict[str, object] = {}
        if stream.job is not None:
            request = stream.job.request
            facts = {
                "size": str(request.size),
                "steps": request.steps,
                "references": len(request.references),
                "seed": request.seed,
                "priority": request.priority.value,
                "queue_seconds": round(stream.job.queue_seconds, 4),
                "max_step_requests": stream.job.max_step_requests,
                "previews_skipped": stream.job.previews_skipped,
            }
            if self._config.log_prompts:
                facts["prompt"] = request.prompt
        for key, value in context.invocation_metadata() or ():
            if key == "traceparent":
                facts["traceparent"] = value
        log.info(
            "request finished",
            request_id=stream.request_id,
            operation=operation.value,
            code=code,
            reason=reason,
            seconds=round(seconds, 4),
            **facts,
        )


class _Stream:
    """One response stream: its sequence numbers and its write timeout."""

    def __init__(self, scheduler: Scheduler, config: Config, metrics: Metrics, request_id: str):
        self.request_id = request_id
        self.job: Job | None = None
        self.deadline: float | None = None  # monotonic seconds
        self.is_complete = False  # nothing is left but for the reader to go
        self._metrics, self._stall_seconds = metrics, config.reader_stall_seconds
        self._sequence = 0

    async def write(self, context: Context, happened: Event) -> None:
        """Send one event. Raises: ReaderStalled when the reader takes nothing for too long."""
        assert self.job is not None
        message = events.event(happened, self.request_id, self._sequence, self.job.request.client_tag)
        self._sequence += 1
        self.is_complete = isinstance(happened, Completed)
        try:
            async with asyncio.timeout(self._stall_seconds):
                await context.write(message)
        except TimeoutError:
            raise ReaderStalled(f"no event was read for {self._stall_seconds:g} s") from None
        if isinstance(happened, Preview):
            self._metrics.previews.labels("sent").inc()


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """klein.v1.UsageService: not served until there is a ledger."""

    async def GetUsage(self, request: usage_pb2.GetUsageRequest, context: Context) -> usage_pb2.GetUsageResponse:
        await refuse(context, NotImplementedHere("GetUsage needs the ledger, which is not served yet"), _new_id())
        return usage_pb2.GetUsageResponse()

    async def ListUsageRecords(  # type: ignore[override]
        self, request: usage_pb2.ListUsageRecordsRequest, context: Context
    ) -> None:
        error = NotImplementedHere("ListUsageRecords needs the ledger, which is not served yet")
        await refuse(context, error, _new_id())


def capabilities(facts: ModelFacts, config: Config) -> image_pb2.GetCapabilitiesResponse:
    """What this server and model take and give."""
    return image_pb2.GetCapabilitiesResponse(
        model=facts.name,
        variant=facts.variant.value,
        is_distilled=facts.variant.value == "distilled",
        default_width=facts.default_size.width,
        default_height=facts.default_size.height,
        default_steps=facts.default_steps,
        default_guidance_scale=facts.default_guidance_scale,
        max_guidance_scale=1.0 if facts.variant.value == "distilled" else requests.GUIDANCE_MAX,
        max_steps=config.max_steps,
        min_edge=requests.EDGE_MIN,
        max_edge=requests.EDGE_MAX,
        edge_multiple=EDGE_MULTIPLE,
        max_pixels=requests.PIXELS_MAX,
        max_references=requests.REFERENCES_MAX,
        max_reference_bytes=config.reference_bytes_max,
        max_reference_pixels=config.reference_pixels_max,
        max_prompt_tokens=facts.prompt_tokens_max,
        image_formats=[f"IMAGE_FORMAT_{f.name}" for f in ImageFormat],
        preview_formats=[f"PREVIEW_FORMAT_{f.name}" for f in PreviewFormat],
        alpha_methods=[f"ALPHA_METHOD_{m.name}" for m in facts.alpha_methods],
        chunk_bytes=config.chunk_bytes,
        price=image_pb2.Price(
            first_output_megapixel_microusd=config.price_first_output_megapixel_microusd,
            further_output_megapixel_microusd=config.price_further_output_megapixel_microusd,
            reference_megapixel_microusd=config.price_reference_megapixel_microusd,
            version=config.price_version,
        ),
        device=facts.device,
        dtype=facts.dtype,
        server_version=__version__,
        max_request_bytes=config.request_bytes_max,
    )


def _new_id() -> str:
    return uuid.uuid4().hex
