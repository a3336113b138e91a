"""What a stream says, as frozen values; times are seconds, sizes pixels. Knows neither gRPC nor their order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from klein.v1 import image_pb2 as pb

from kleinclient import files
from kleinclient.names import word
from kleinclient.usage import Usage, usage


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Timings:
    """Seconds per stage at the server; steps shared with other requests count in full."""

    queue: float
    text: float
    references: float
    denoise: float
    decode: float
    encode: float

    @property
    def total(self) -> float:
        return self.queue + self.text + self.references + self.denoise + self.decode + self.encode


@dataclass(frozen=True)
class Accepted:
    """The request with every default resolved. The same prompt, references, seed and steps make the same image.

    `is_replay`: it was under way or done already, under the same key.
    """

    seed: int
    size: Size
    steps: int
    guidance_scale: float
    model: str
    reference_sizes: tuple[Size, ...]
    prompt_tokens: int
    prompt_truncated: bool
    estimated_wait: float
    estimated_duration: float
    estimated_usage: Usage
    is_replay: bool

    def is_same_picture(self, other: "Accepted") -> bool:
        """Whether both make the same image, step by step."""
        return (self.seed, self.size, self.steps, self.guidance_scale, self.model) == (
            other.seed,
            other.size,
            other.steps,
            other.guidance_scale,
            other.model,
        )


@dataclass(frozen=True)
class Queued:
    """Still waiting; `position` 0 is next."""

    position: int
    estimated_wait: float


@dataclass(frozen=True)
class Started:
    """The first step is scheduled."""

    queue_wait: float


@dataclass(frozen=True)
class Progress:
    """Step `step` of `total_steps` (from 1) is done."""

    step: int
    total_steps: int
    estimated_remaining: float


@dataclass(frozen=True)
class Preview:
    """What the image looks like after a step. `skipped`: previews left out before it because the reader was slow.

    `format` is "jpeg", "png", "webp", or "latent": float16, little endian, channels × height × width.
    """

    step: int
    total_steps: int
    format: str
    size: Size
    channels: int
    skipped: int
    data: bytes = field(repr=False)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture as it came, whole or not at all. Raises: OSError."""
        return files.write(path, self.data)


@dataclass(frozen=True)
class Image:
    """The final image, its bytes checked against the sha256 that the server gave.

    `format` is "png", "webp", "jpeg" or "raw_rgba"; `alpha_method` "opaque", "native", "difference" or "key".
    `max_step_requests`: the most requests that shared a step with it, itself included. `is_replay`: its stream was
    attached to a request that was under way or done already, by its key; it is billed once.
    """

    format: str
    mime_type: str
    size: Size
    alpha_method: str
    seed: int
    model: str
    usage: Usage
    timings: Timings
    max_step_requests: int
    previews_skipped: int
    sha256: str
    request_id: str
    is_replay: bool
    data: bytes = field(repr=False)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the image as it came, whole or not at all; the path's suffix changes nothing. Raises: OSError."""
        return files.write(path, self.data)

    def __str__(self) -> str:
        return f"{self.size} {self.format.upper()} seed {self.seed}: {self.usage}, {self.timings.total:.2f} s"


@dataclass(frozen=True)
class Retrying:
    """The client's own event: no room yet, or the connection broke; the request is sent again in `delay` seconds."""

    delay: float
    reason: str
    message: str


Event = Accepted | Queued | Started | Progress | Preview | Image | Retrying


def seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def timings(message: pb.Timings) -> Timings:
    stages = message.queue, message.text, message.references, message.denoise, message.decode, message.encode
    return Timings(*map(seconds, stages))


def _accepted(message: pb.Accepted) -> Accepted:
    return Accepted(
        message.seed,
        Size(message.width, message.height),
        message.steps,
        message.guidance_scale,
        message.model,
        tuple(Size(size.width, size.height) for size in message.reference_sizes),
        message.prompt_tokens,
        message.prompt_truncated,
        seconds(message.estimated_wait),
        seconds(message.estimated_duration),
        usage(message.estimated_usage),
        message.is_replay,
    )


def _preview(message: pb.Preview) -> Preview:
    return Preview(
        message.step,
        message.total_steps,
        word(pb.PreviewFormat, message.format),
        Size(message.width, message.height),
        message.channels,
        message.skipped,
        message.data,
    )


READERS: dict[str, Callable[[Any], Event]] = {
    "accepted": _accepted,
    "queued": lambda message: Queued(message.position, seconds(message.estimated_wait)),
    "started": lambda message: Started(seconds(message.queue_wait)),
    "progress": lambda message: Progress(message.step, message.total_steps, seconds(message.estimated_remaining)),
    "preview": _preview,
}
