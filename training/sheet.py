"""The contact sheet: 64 prompts and 32 edits as one picture, on a checkerboard so that alpha shows."""

from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image, ImageDraw, ImageFont

from training.draw import draw
from training.requests import Example
from training.scene import render
from training.score import SINGLE, held_out

SIDE, COLUMNS, CAPTION_PX, GAP = 112, 8, 26, 6
SEED = 4_000


def _checkered(rgba: torch.Tensor) -> Image.Image:
    side = rgba.shape[1]
    cell = (torch.arange(side) // 8) % 2
    board = (0.86 + 0.08 * (cell.view(-1, 1) ^ cell.view(1, -1))).expand(3, -1, -1)
    flat = rgba[:3] * rgba[3:] + board * (1 - rgba[3:])
    return Image.fromarray((flat * 255).round().byte().permute(1, 2, 0).numpy()).resize(
        (SIDE, SIDE), Image.Resampling.LANCZOS
    )


def _wrapped(text: str, width: int = 22) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])


def examples(size_px: tuple[int, int]) -> tuple[list[Example], list[list[Example]]]:
    """64 prompts without references, and groups of edits that share a number of references."""
    prompts = (
        held_out("generate", 0, 40, size_px)
        + held_out("generate", 0, 8, size_px, glyphs=True)
        + held_out("pair", 0, 16, size_px)
    )
    single = [one for kind in SINGLE for one in held_out(kind, 1, 4, size_px)]
    double = held_out("beside", 2, 3, size_px) + held_out("transfer", 2, 2, size_px)
    return prompts, [single, double, held_out("grid", 3, 2, size_px), held_out("grid", 4, 1, size_px)]


def make(checkpoint: Path, out: Path, side: int = 256) -> None:
    """Draw and write the sheet; an edit's references stand to the left of its result."""
    pipe = Flux2KleinPipeline.from_pretrained(checkpoint)
    prompts, groups = examples((side, side))
    cells = [
        ([_checkered(p)], e.prompt)
        for e, p in zip(prompts, draw(pipe, prompts, list(range(SEED, SEED + 64))), strict=True)
    ]
    rows = [cells[i : i + COLUMNS] for i in range(0, 64, COLUMNS)]
    for group in groups:
        edits = []
        for one, picture in zip(group, draw(pipe, group, list(range(SEED, SEED + len(group)))), strict=True):
            edits.append(([_checkered(render([r])[0]) for r in one.references] + [_checkered(picture)], one.prompt))
        across = COLUMNS // (len(group[0].references) + 1)
        rows += [edits[i : i + across] for i in range(0, len(edits), across)]
    _paste(rows).save(out, optimize=True)


def _paste(rows: list[list[tuple[list[Image.Image], str]]]) -> Image.Image:
    font, row_px = ImageFont.load_default(9), SIDE + CAPTION_PX + GAP
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, len(rows) * row_px + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        column = 0
        for pictures, prompt in row:
            left, top = GAP + column * (SIDE + GAP), GAP + r * row_px
            for i, picture in enumerate(pictures):
                sheet.paste(picture, (left + i * (SIDE + GAP), top))
            pen.text((left, top + SIDE), _wrapped(prompt, 22 * len(pictures)), fill="black", font=font, spacing=0)
            column += len(pictures)
    return sheet
