"""Pictures as people see them: decoded where they are pictures, transparency as a checkerboard."""

from io import BytesIO, StringIO
from typing import Any

import pytest
from kleinclient import Preview, Size
from kleinclient.cli import picture
from PIL import Image
from rich.console import Console


def preview(format: str, data: bytes) -> Preview:
    return Preview(1, 4, format, Size(4, 2), 4, 0, data)


def file(format: str) -> bytes:
    data = BytesIO()
    Image.new("RGB", (4, 2), "red").save(data, format)
    return data.getvalue()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "raw_rgba"])
def test_a_picture_is_decoded(format: str) -> None:
    """Whatever format was asked for."""
    data = bytes([255, 0, 0, 255] * 8) if format == "raw_rgba" else file(format)
    shown = picture.decoded(preview(format, data))
    assert shown is not None
    assert shown.size == (4, 2)
    assert all(
        abs(level - red) < 8 for level, red in zip(shown.convert("RGB").getpixel((1, 1)), (255, 0, 0), strict=True)
    )


@pytest.mark.parametrize(
    ("format", "data"),
    [("latent", bytes(64)), ("avif", b"of later"), ("png", b"no picture"), ("png", file("png")[:40])],
)
def test_what_is_no_picture_is_none(format: str, data: bytes) -> None:
    """Latents, formats of later and broken files are not shown, and break nothing."""
    assert picture.decoded(preview(format, data)) is None


def test_a_checkerboard_shows_through() -> None:
    """Squares of two greys where nothing is, the picture where it is opaque, half of each between."""
    levels: list[Any] = [(0, 0, 0, 0), (0, 0, 0, 0), (9, 8, 7, 255), (0, 0, 0, 128)]
    cut_out = Image.new("RGBA", (4, 1))
    cut_out.putdata(levels)
    shown = picture.on_checkerboard(cut_out, square_px=1)
    assert (shown.mode, shown.getpixel((0, 0)), shown.getpixel((1, 0))) == ("RGB", (255,) * 3, (204,) * 3)
    assert shown.getpixel((2, 0)) == (9, 8, 7)
    assert shown.getpixel((3, 0)) == pytest.approx((102,) * 3, abs=1)
    opaque = Image.new("L", (2, 2), 7)
    assert picture.on_checkerboard(opaque, 1).getpixel((0, 0)) == (7, 7, 7)


def test_what_is_no_terminal_draws_nothing() -> None:
    """Into a file or a pipe no picture is drawn, and no terminal is asked what it can do."""
    assert picture.drawing(Console(file=StringIO())) == (None, False)
