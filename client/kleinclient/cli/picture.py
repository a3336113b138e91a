"""Pictures for people to look at: decoded, transparency made visible, drawn by the terminal. Owns Pillow."""

import logging
import os
import sys
from collections.abc import Callable
from io import BytesIO

from PIL import Image as PillowImage
from rich.console import Console, RenderableType

from kleinclient.events import Image, Preview

Drawing = Callable[[PillowImage.Image], RenderableType]
ROWS_MAX = 16  # of text; more would push the command's own line off small terminals
SQUARES = (255, 204)  # grey of the checkerboard's two squares, as image editors draw it
VIEWABLE = ("png", "jpeg", "webp", "raw_rgba")


def decoded(image: Image | Preview) -> PillowImage.Image | None:
    """The picture; None for what is none: latents, formats of later, bytes that only their maker understands."""
    if image.format not in VIEWABLE:
        return None
    if image.format == "raw_rgba":
        return PillowImage.frombytes("RGBA", image.size, image.data)
    try:
        picture = PillowImage.open(BytesIO(image.data))
        picture.load()
    except OSError:  # it is kept and written as it came; only looking at it is not possible
        return None
    return picture


def on_checkerboard(picture: PillowImage.Image, square_px: int) -> PillowImage.Image:
    """The picture in RGB, with a checkerboard where it is transparent."""
    if "A" not in picture.getbands():
        return picture.convert("RGB")
    columns, rows = (-(-edge // square_px) for edge in picture.size)
    squares = PillowImage.new("L", (columns, rows))
    squares.putdata([SQUARES[(column + row) % 2] for row in range(rows) for column in range(columns)])
    board = squares.resize((columns * square_px, rows * square_px), PillowImage.Resampling.NEAREST)
    board = board.crop((0, 0, *picture.size)).convert("RGBA")
    return PillowImage.alpha_composite(board, picture.convert("RGBA")).convert("RGB")


def drawing(console: Console) -> tuple[Drawing | None, bool]:
    """How this terminal draws pictures, None where it cannot, and whether they may be redrawn in place.

    Only a terminal in the foreground is asked what it can do: the question goes to standard output, the answer comes
    on standard input.
    """
    if not (console.file is sys.stdout and console.is_terminal and console.color_system and _is_foreground()):
        return None, False
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # it warns of terminals that do not tell their size
    from textual_image import renderable

    rows = max(4, min(ROWS_MAX, console.height - 4))

    def draw(picture: PillowImage.Image) -> RenderableType:
        shown = on_checkerboard(picture, max(1, max(picture.size) // 32))
        drawn: RenderableType = renderable.Image(shown, width="auto", height=rows)
        return drawn

    return draw, renderable.Image is not renderable.SixelImage


def _is_foreground() -> bool:
    if not (sys.stdin and sys.stdin.isatty()) or os.environ.get("TERM") == "dumb":
        return False
    if not os.get_terminal_size(sys.stdout.fileno()).columns:  # a pseudo-terminal that nobody looks at
        return False
    return sys.platform == "win32" or os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
