"""Events to messages. Knows no scheduler, no I/O."""

from google.protobuf.duration_pb2 import Duration
from klein.v1 import image_pb2, usage_pb2

from kleinserve.core import (
    Accepted,
    Completed,
    Event,
    ImageChunk,
    ImageHeader,
    Preview,
    Progress,
    Queued,
    Started,
    Timings,
    Usage,
)


def event(happened: Event, request_id: str, sequence: int, client_tag: str) -> image_pb2.ImageEvent:
    """An event as the stream carries it."""
    message = image_pb2.ImageEvent(request_id=request_id, sequence=sequence, client_tag=client_tag)
    match happened:
        case Accepted():
            message.accepted.CopyFrom(_accepted(happened))
        case Queued(position, wait):
            message.queued.CopyFrom(image_pb2.Queued(position=position, estimated_wait=duration(wait)))
        case Started(wait):
            message.started.CopyFrom(image_pb2.Started(queue_wait=duration(wait)))
        case Progress(step, total, left):
            message.progress.CopyFrom(
                image_pb2.Progress(step=step, total_steps=total, estimated_remaining=duration(left))
            )
        case Preview():
            message.preview.CopyFrom(_preview_message(happened))
        case ImageHeader():
            message.image_header.CopyFrom(_header(happened))
        case ImageChunk(offset, data):
            message.image_chunk.CopyFrom(image_pb2.ImageChunk(offset=offset, data=data))
        case Completed():
            message.completed.CopyFrom(_completed(happened))
    return message


def duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made


def _accepted(accepted: Accepted) -> image_pb2.Accepted:
    return image_pb2.Accepted(
        seed=accepted.seed,
        width=accepted.size.width,
        height=accepted.size.height,
        steps=accepted.steps,
        guidance_scale=accepted.guidance_scale,
        model=accepted.model,
        reference_sizes=[image_pb2.Size(width=s.width, height=s.height) for s in accepted.reference_sizes],
        prompt_tokens=accepted.prompt_tokens,
        prompt_truncated=accepted.prompt_truncated,
        estimated_wait=duration(accepted.estimated_wait),
        estimated_duration=duration(accepted.estimated_duration),
        estimated_usage=_usage(accepted.estimated_usage),
    )


def _preview_message(preview: Preview) -> image_pb2.Preview:
    return image_pb2.Preview(
        step=preview.step,
        total_steps=preview.total_steps,
        format=f"PREVIEW_FORMAT_{preview.format.name}",
        width=preview.width,
        height=preview.height,
        channels=preview.channels,
        data=preview.data,
        skipped=preview.skipped,
    )


def _header(header: ImageHeader) -> image_pb2.ImageHeader:
    return image_pb2.ImageHeader(
        format=f"IMAGE_FORMAT_{header.format.name}",
        mime_type=header.format.value,
        width=header.size.width,
        height=header.size.height,
        alpha_method=f"ALPHA_METHOD_{header.alpha_method.name}",
        size_bytes=header.size_bytes,
        sha256=header.sha256,
    )


def _completed(completed: Completed) -> image_pb2.Completed:
    return image_pb2.Completed(
        usage=_usage(completed.usage),
        timings=_timings(completed.timings),
        max_step_requests=completed.max_step_requests,
        previews_skipped=completed.previews_skipped,
    )


def _usage(usage: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        output_pixels=usage.output_pixels,
        output_megapixels=usage.output_megapixels,
        reference_megapixels=usage.reference_megapixels,
        cost_microusd=usage.cost_microusd,
        billable=usage.billable,
        price_version=usage.price_version,
    )


def _timings(timings: Timings) -> image_pb2.Timings:
    return image_pb2.Timings(
        queue=duration(timings.queue),
        text=duration(timings.text),
        references=duration(timings.references),
        denoise=duration(timings.denoise),
        decode=duration(timings.decode),
        encode=duration(timings.encode),
    )
