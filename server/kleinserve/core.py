"""Our nouns: what a request asks for, what happens to it, what it costs. Standard library only; all frozen.

Knows nothing of gRPC, torch or Pillow. The enums' names are the proto's, without the prefix.
"""

from dataclasses import dataclass, field
from enum import Enum

EDGE_MULTIPLE = 16  # pixels per token edge: the VAE's 8 times the 2 × 2 patch
MEGAPIXEL = 1_048_576
ANONYMOUS = "anonymous"  # the caller where there is no authentication


class Operation(Enum):
    GENERATE = "generate"
    EDIT = "edit"


class ImageFormat(Enum):
    PNG = "image/png"
    WEBP = "image/webp"
    JPEG = "image/jpeg"
    RAW_RGBA = "application/octet-stream"


class PreviewFormat(Enum):
    JPEG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    LATENT = "application/octet-stream;latent"


class Background(Enum):
    OPAQUE = "opaque"
    TRANSPARENT = "transparent"


class Priority(Enum):
    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class AlphaMethod(Enum):
    OPAQUE = "opaque"
    NATIVE = "native"
    DIFFERENCE = "difference"
    KEY = "key"


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def megapixels(self) -> int:
        """Billable megapixels: at least 1, every started one counts."""
        return max(1, -(-self.pixels // MEGAPIXEL))

    @property
    def tokens(self) -> int:
        """Image tokens: one per 16 × 16 pixels."""
        return self.pixels // (EDGE_MULTIPLE * EDGE_MULTIPLE)


@dataclass(frozen=True)
class Pixels:
    """An 8-bit picture: rows top down, `channels` 3 (RGB) or 4 (RGBA, straight alpha) bytes per pixel."""

    size: Size
    channels: int
    data: bytes


@dataclass(frozen=True)
class Reference:
    """A reference as the model sees it: RGBA for a 4-channel VAE, else RGB.

    `digest` identifies its content for the cache; empty: it comes once and is not to be kept.
    """

    pixels: Pixels
    digest: bytes


@dataclass(frozen=True)
class Output:
    """How the final image is encoded. `quality` 0: JPEG 90, WebP lossless."""

    format: ImageFormat = ImageFormat.PNG
    quality: int = 0
    embed_prompt: bool = False
    background: Background = Background.OPAQUE


@dataclass(frozen=True)
class PreviewOptions:
    """Which previews are sent. `max_edge` 0: the preview map's own size, an eighth of the image."""

    disabled: bool = False
    every_n_steps: int = 1
    max_edge: int = 0
    format: PreviewFormat = PreviewFormat.JPEG

    def wants(self, step: int, steps: int) -> bool:
        """Whether `step` (1-based) of `steps` has a preview: every n-th and the last, which LATENT leaves out."""
        if self.disabled or (step == steps and self.format is PreviewFormat.LATENT):
            return False
        return step == steps or step % self.every_n_steps == 0


class Variant(Enum):
    """What a checkpoint does with guidance: distilled has none, base runs classifier-free guidance as two sequences."""

    DISTILLED = "distilled"
    BASE = "base"
    GUIDANCE_EMBEDDED = "guidance-embedded"


@dataclass(frozen=True)
class ModelFacts:
    """What the loaded checkpoint says of itself; nothing here is a constant of any one model."""

    name: str
    variant: Variant
    default_size: Size
    default_steps: int
    default_guidance_scale: float
    prompt_tokens_max: int
    latent_channels: int
    has_native_alpha: bool
    device: str
    dtype: str

    @property
    def alpha_methods(self) -> tuple[AlphaMethod, ...]:
        cut_out = (AlphaMethod.NATIVE,) if self.has_native_alpha else (AlphaMethod.DIFFERENCE, AlphaMethod.KEY)
        return (AlphaMethod.OPAQUE, *cut_out)


@dataclass(frozen=True)
class Request:
    """One validated request with every default resolved; `references` in the order asked."""

    request_id: str
    operation: Operation
    prompt: str
    references: tuple[Reference, ...]
    size: Size
    seed: int
    steps: int
    guidance_scale: float
    output: Output = field(default_factory=Output)
    preview: PreviewOptions = field(default_factory=PreviewOptions)
    priority: Priority = Priority.STANDARD
    client_tag: str = ""
    caller: str = ANONYMOUS

    @property
    def reference_sizes(self) -> tuple[Size, ...]:
        return tuple(reference.pixels.size for reference in self.references)

    @property
    def is_transparent(self) -> bool:
        return self.output.background is Background.TRANSPARENT


@dataclass(frozen=True)
class Usage:
    """Billable facts in integers and their price in millionths of a US dollar."""

    output_pixels: int
    output_megapixels: int
    reference_megapixels: int
    cost_microusd: int
    billable: bool
    price_version: str


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
class ImageHeader:
    """Announces the final file. `sha256` is 32 raw bytes."""

    format: ImageFormat
    size: Size
    alpha_method: AlphaMethod
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class ImageChunk:
    offset: int
    data: bytes


@dataclass(frozen=True)
class EncodedImage:
    """The final file. `sha256` is 32 raw bytes."""

    format: ImageFormat
    size: Size
    alpha_method: AlphaMethod
    data: bytes
    sha256: bytes


@dataclass(frozen=True)
class Accepted:
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


@dataclass(frozen=True)
class Queued:
    position: int
    estimated_wait: float


@dataclass(frozen=True)
class Started:
    queue_wait: float


@dataclass(frozen=True)
class Progress:
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
class Completed:
    usage: Usage
    timings: Timings
    max_step_requests: int
    previews_skipped: int


Event = Accepted | Queued | Started | Progress | Preview | ImageHeader | ImageChunk | Completed
