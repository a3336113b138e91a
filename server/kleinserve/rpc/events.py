"""Events to messages. Knows no scheduler, no I/O."""

from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration
from klein.v1 import image_pb2, usage_pb2

from kleinserve.core import (
    Accepted,
    Completed,
    EncodedImage,
    Event,
    Preview,
    Progress,
    Queued,
    Started,
    Timings,
    Usage,
)


class Numbered:
    """The messages of one stream, numbered 0, 1, 2, …"""

    def __init__(self, request_id: str, client_tag: str):
        self._request_id, self._client_tag, self._sequence = request_id, client_tag, 0

    def event(self, happened: Event) -> image_pb2.ImageEvent:
        """An event as the stream carries it."""
        message = self._next()
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
            case Completed():
                message.completed.CopyFrom(_completed(happened))
            case EncodedImage():
                raise TypeError("an image is several messages")
        return message

    def image(self, image: EncodedImage, chunk_bytes: int) -> Iterator[image_pb2.ImageEvent]:
        """The final image: its header, then its file in chunks."""
        message = self._next()
        message.image_header.CopyFrom(_header(image))
        yield message
        for offset in range(0, len(image.data), chunk_bytes):
            message = self._next()
            message.image_chunk.offset, message.image_chunk.data = offset, image.data[offset : offset + chunk_bytes]
            yield message

    def _next(self) -> image_pb2.ImageEvent:
        sequence, self._sequence = self._sequence, self._sequence + 1
        return image_pb2.ImageEvent(request_id=self._request_id, sequence=sequence, client_tag=self._client_tag)


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
        estimated_usage=usage(accepted.estimated_usage),
        is_replay=accepted.is_replay,
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


def _header(image: EncodedImage) -> image_pb2.ImageHeader:
    return image_pb2.ImageHeader(
        format=f"IMAGE_FORMAT_{image.format.name}",
        mime_type=image.format.value,
        width=image.size.width,
        height=image.size.height,
        alpha_method=f"ALPHA_METHOD_{image.alpha_method.name}",
        size_bytes=len(image.data),
        sha256=image.sha256,
    )


def _completed(completed: Completed) -> image_pb2.Completed:
    return image_pb2.Completed(
        usage=usage(completed.usage),
        timings=_timings(completed.timings),
        max_step_requests=completed.max_step_requests,
        previews_skipped=completed.previews_skipped,
    )


def usage(used: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        output_pixels=used.output_pixels,
        output_megapixels=used.output_megapixels,
        reference_megapixels=used.reference_megapixels,
        cost_microusd=used.cost_microusd,
        billable=used.billable,
        price_version=used.price_version,
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
