"""How large a picture is, and the picture itself as bytes."""

from dataclasses import dataclass

EDGE_MULTIPLE = 16  # pixels per token edge: the VAE's 8 times the 2 × 2 patch
MEGAPIXEL = 1_048_576


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
