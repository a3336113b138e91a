"""What a caller asks for, with every default resolved. The enums' names are the proto's, without the prefix."""

from dataclasses import dataclass, field, replace
from enum import Enum

from kleinserve.core.caller import ANONYMOUS
from kleinserve.core.size import Pixels, Size


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


class OnDisconnect(Enum):
    CANCEL = "cancel"
    DETACH = "detach"


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


@dataclass(frozen=True)
class Options:
    """The wire's ImageOptions but for the size, which a reference may decide. `idempotency_key` "": none."""

    seed: int
    steps: int
    guidance_scale: float
    output: Output = field(default_factory=Output)
    preview: PreviewOptions = field(default_factory=PreviewOptions)
    priority: Priority = Priority.STANDARD
    idempotency_key: str = ""
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    client_tag: str = ""


@dataclass(frozen=True)
class Reference:
    """A reference as the model sees it: RGBA for a 4-channel VAE, else RGB.

    `digest` identifies its content for the cache; empty: it comes once and is not to be kept.
    """

    pixels: Pixels
    digest: bytes


@dataclass(frozen=True)
class Request:
    """One request as a backend gets it: it can be pickled. `references` in the order asked; `caller` is a name."""

    request_id: str
    operation: Operation
    prompt: str
    references: tuple[Reference, ...]
    size: Size
    options: Options
    caller: str = ANONYMOUS.name

    @property
    def reference_sizes(self) -> tuple[Size, ...]:
        return tuple(reference.pixels.size for reference in self.references)

    def without_pixels(self) -> "Request":
        """The same, with its references' sizes alone."""
        bare = (replace(r, pixels=replace(r.pixels, data=b"")) for r in self.references)
        return replace(self, references=tuple(bare))

    @property
    def is_transparent(self) -> bool:
        return self.options.output.background is Background.TRANSPARENT
