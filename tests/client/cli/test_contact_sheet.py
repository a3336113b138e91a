"""A sheet of what several requests made."""

from kleinclient.cli.contact_sheet import CAPTION_PX, CELL_PX, GAP_PX, LABEL_PX, Row, contact_sheet
from PIL import Image

RED, BLUE, GREEN = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime"))


def middle(row: int, column: int) -> tuple[int, int]:
    """The middle of a picture on the sheet."""
    left = GAP_PX + LABEL_PX + column * (CELL_PX + GAP_PX)
    top = GAP_PX + row * (CELL_PX + CAPTION_PX + GAP_PX)
    return left + CELL_PX // 2, top + CELL_PX // 2


def test_previews_come_first_and_the_image_last() -> None:
    """A row for each request, as wide as the longest; what failed has no image."""
    rows = [
        Row("one", "a star", "0.1 s", previews=[(1, RED), (2, BLUE)], final=GREEN),
        Row("two", "a moon", "refused", references=[GREEN], previews=[(1, BLUE)]),
    ]
    sheet = contact_sheet(rows)
    assert sheet.width == GAP_PX + LABEL_PX + 3 * (CELL_PX + GAP_PX)
    assert sheet.height == GAP_PX + 2 * (CELL_PX + CAPTION_PX + GAP_PX)
    assert [sheet.getpixel(middle(0, column)) for column in range(3)] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert sheet.getpixel(middle(1, 0)) == (0, 0, 255)
    assert sheet.getpixel(middle(1, 1)) == sheet.getpixel((0, 0))
    references = sheet.crop((GAP_PX, middle(1, 0)[1], GAP_PX + 56, middle(1, 0)[1] + CELL_PX // 2))
    assert (0, 255, 0) in references.get_flattened_data()


def test_a_picture_keeps_its_proportions() -> None:
    """A wide one fills the width of its cell and leaves paper above."""
    sheet = contact_sheet([Row("one", "a star", "", final=RED.resize((128, 32)))])
    x, y = middle(0, 0)
    assert sheet.getpixel((x, y)) == (255, 0, 0)
    assert sheet.getpixel((x, y - CELL_PX // 4)) == sheet.getpixel((0, 0))
