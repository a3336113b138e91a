"""What the loaded checkpoint says of itself; nothing here is a constant of any one model."""

from dataclasses import dataclass
from enum import Enum

from kleinserve.core.size import Size


class Variant(Enum):
    """What a checkpoint does with guidance: distilled has none, base runs classifier-free guidance as two sequences."""

    DISTILLED = "distilled"
    BASE = "base"
    GUIDANCE_EMBEDDED = "guidance-embedded"


class AlphaMethod(Enum):
    OPAQUE = "opaque"
    NATIVE = "native"
    DIFFERENCE = "difference"
    KEY = "key"


@dataclass(frozen=True)
class ModelFacts:
    """A checkpoint's name, defaults and limits, and where it runs."""

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
