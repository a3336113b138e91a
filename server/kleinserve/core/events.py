"""What happens to a request, in the order in which it can: what a backend tells of it, and what a caller is told."""

from dataclasses import dataclass

from kleinserve.core.model import AlphaMethod
from kleinserve.core.request import ImageFormat, PreviewFormat
from kleinserve.core.size import Size
from kleinserve.core.usage import Usage
from kleinserve.errors import KleinError


@dataclass(frozen=True)
class Admitted:
    """A backend has taken a request. Estimates in seconds; they count what was admitted before it."""

    prompt_tokens: int
    is_truncated: bool
    estimated_wait: float
    estimated_duration: float


@dataclass(frozen=True)
class Accepted:
    """What a stream begins with: the request with every default resolved, and estimates in seconds."""

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
    is_replay: bool = False


@dataclass(frozen=True)
class Queued:
    """`position` 0 is next. `estimated_wait` in seconds."""

    position: int
    estimated_wait: float


@dataclass(frozen=True)
class Started:
    """Its first step is scheduled, after `queue_wait` seconds."""

    queue_wait: float


@dataclass(frozen=True)
class Progress:
    """`step` (1-based) is done. `estimated_remaining` in seconds."""

    step: int
    total_steps: int
    estimated_remaining: float


@dataclass(frozen=True)
class Preview:
    """A picture of a step's estimate of the final image; `skipped`: previews dropped since the last one sent."""

    step: int
    total_steps: int
    format: PreviewFormat
    width: int
    height: int
    channels: int
    data: bytes
    skipped: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds spent per stage; steps shared with others count in full."""

    queue: float = 0.0
    text: float = 0.0
    references: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    encode: float = 0.0


@dataclass(frozen=True)
class Span:
    """A stage that ran for a request, from and to these seconds after it came to the backend.

    `stage`: as in klein_stage_seconds. `requests`: how many shared it.
    """

    stage: str
    start_seconds: float
    end_seconds: float
    requests: int = 1


@dataclass(frozen=True)
class Spent:
    """What a request took of a backend. `accelerator_microseconds`: its share, by work, of all that ran for it.

    `seconds`: from its coming to the backend's last word. `spans`: what ran meanwhile, in order, one at a time.
    """

    timings: Timings = Timings()
    steps_run: int = 0
    accelerator_microseconds: int = 0
    max_step_requests: int = 0
    seconds: float = 0.0
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class EncodedImage:
    """The final file. `sha256` is 32 raw bytes."""

    format: ImageFormat
    size: Size
    alpha_method: AlphaMethod
    data: bytes
    sha256: bytes


@dataclass(frozen=True)
class Finished:
    """A backend's last word on a request: its image."""

    image: EncodedImage
    spent: Spent


@dataclass(frozen=True)
class Failed:
    """A backend's last word on a request that has no image: a failure of its own, or `Cancelled` after a cancel."""

    error: KleinError
    spent: Spent


@dataclass(frozen=True)
class Completed:
    """A stream's last event: its image is whole."""

    usage: Usage
    timings: Timings
    max_step_requests: int
    previews_skipped: int


BackendEvent = Queued | Started | Progress | Preview | Finished | Failed
Event = Accepted | Queued | Started | Progress | Preview | EncodedImage | Completed
