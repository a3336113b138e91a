"""One picture of many: a labelled row for each request, its references and previews left of its image."""

import textwrap
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from kleinclient.cli.picture import on_checkerboard

CELL_PX = 160
GAP_PX = 12
LABEL_PX = 236
CAPTION_PX = 20
INK, PAPER, FAINT = (32, 32, 36), (250, 250, 248), (120, 120, 126)


@dataclass
class Row:
    """What one request was given and what came of it; a preview has the number of its step."""

    title: str
    prompt: str
    line: str
    references: list[Image.Image] = field(default_factory=list)
    previews: list[tuple[int, Image.Image]] = field(default_factory=list)
    final: Image.Image | None = None

    @property
    def cells(self) -> list[tuple[str, Image.Image]]:
        """Caption and picture of each column after the label; the image last."""
        steps = [(f"step {number}", preview) for number, preview in self.previews]
        return [*steps, *([("image", self.final)] if self.final else [])]


def contact_sheet(rows: list[Row]) -> Image.Image:
    """The sheet: label and references left, then every preview, then the image, transparency on a checkerboard."""
    columns = max(len(row.cells) for row in rows)
    width = GAP_PX + LABEL_PX + columns * (CELL_PX + GAP_PX)
    height = GAP_PX + len(rows) * (CELL_PX + CAPTION_PX + GAP_PX)
    sheet = Image.new("RGB", (width, height), PAPER)
    for number, row in enumerate(rows):
        top = GAP_PX + number * (CELL_PX + CAPTION_PX + GAP_PX)
        _draw_label(sheet, row, top)
        for column, (caption, picture) in enumerate(row.cells):
            left = GAP_PX + LABEL_PX + column * (CELL_PX + GAP_PX)
            sheet.paste(_cell(picture, CELL_PX), (left, top))
            ImageDraw.Draw(sheet).text((left, top + CELL_PX + 3), caption, FAINT, _font(12))
    return sheet


def _draw_label(sheet: Image.Image, row: Row, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, top), row.title, INK, _font(15))
    draw.multiline_text((GAP_PX, top + 22), textwrap.fill(f"“{row.prompt}”", 30), INK, _font(13))
    thumbnail_px = 56
    for number, reference in enumerate(row.references):
        place = (GAP_PX + number * (thumbnail_px + 8), top + CELL_PX - thumbnail_px)
        sheet.paste(_cell(reference, thumbnail_px), place)
    draw.text((GAP_PX, top + CELL_PX + 3), row.line, FAINT, _font(12))


def _cell(picture: Image.Image, edge_px: int) -> Image.Image:
    """The picture fitted into a square, in its own proportions."""
    scale = edge_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = on_checkerboard(picture.resize(size, Image.Resampling.BICUBIC), square_px=8)
    cell = Image.new("RGB", (edge_px, edge_px), PAPER)
    cell.paste(fitted, ((edge_px - fitted.width) // 2, (edge_px - fitted.height) // 2))
    return cell


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
