"""Previews: small files that never grow, never exceed 1 MiB, and keep their proportions."""

import io

import numpy as np
import pytest
from kleinserve.codec import preview
from kleinserve.core import Pixels, PreviewFormat, Size
from PIL import Image

from tests.codec.files import picture

FORMATS = [PreviewFormat.JPEG, PreviewFormat.PNG, PreviewFormat.WEBP]


def pixels(width: int, height: int, mode: str = "RGB") -> Pixels:
    return Pixels(Size(width, height), len(mode), picture(width, height, mode).tobytes())


SIZES = [
    ((32, 24), 0, (32, 24)),
    ((32, 24), 16, (16, 12)),
    ((24, 32), 16, (12, 16)),
    ((32, 24), 1024, (32, 24)),
    ((1024, 8), 16, (16, 1)),
    ((8, 8), 16, (8, 8)),
    ((1024, 512), 1000, (1000, 500)),
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("size", "max_edge", "wanted"), SIZES)
def test_a_preview_is_fitted_and_never_enlarged(
    format: PreviewFormat, size: tuple[int, int], max_edge: int, wanted: tuple[int, int]
) -> None:
    """The file has the size that is said: the map's own, or scaled down to `max_edge`, in the asked-for format."""
    data, width, height = preview.encode(pixels(*size), format, max_edge)
    image = Image.open(io.BytesIO(data), formats=[format.name])
    image.load()
    assert (width, height) == image.size == wanted


@pytest.mark.parametrize("format", FORMATS)
def test_alpha_is_kept_or_shown_on_white(format: PreviewFormat) -> None:
    """PNG and WebP previews of RGBA keep alpha; a JPEG preview shows what is transparent as white."""
    clear = Pixels(Size(32, 32), 4, b"\x00\x80\x00\x00" * 1024)
    data, _, _ = preview.encode(clear, format, 0)
    image = Image.open(io.BytesIO(data))
    if format is PreviewFormat.JPEG:
        assert min(np.asarray(image).ravel()) >= 253
    else:
        assert image.convert("RGBA").getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_preview_is_near_its_pixels(format: PreviewFormat) -> None:
    """A preview that is not scaled shows the picture, exactly in PNG."""
    source = pixels(128, 96)
    data, _, _ = preview.encode(source, format, 0)
    seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    difference = np.abs(seen.ravel() - np.frombuffer(source.data, np.uint8))
    assert difference.mean() <= (0 if format is PreviewFormat.PNG else 4)


def test_a_preview_is_at_most_a_mebibyte() -> None:
    """Noise of 1024 × 1024, 4 MB as PNG, is halved until the file fits."""
    noise = Pixels(Size(1024, 1024), 4, np.random.default_rng(0).bytes(1024 * 1024 * 4))
    data, width, height = preview.encode(noise, PreviewFormat.PNG, 0)
    assert len(data) <= 1024 * 1024
    assert (width, height) == (512, 512)


def test_the_same_pixels_give_the_same_preview() -> None:
    """Encoding a preview twice gives the same bytes."""
    for format in FORMATS:
        assert preview.encode(pixels(64, 48, "RGBA"), format, 32) == preview.encode(pixels(64, 48, "RGBA"), format, 32)
