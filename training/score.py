"""Scores a checkpoint against the renderer: draws held-out examples and checks what is seen. Knows no training."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from diffusers import Flux2KleinPipeline

from training import card
from training.draw import draw
from training.measure import Seen, alpha_overlap, background, fit, see
from training.mixture import example
from training.requests import Example
from training.scene import PALETTE, Thing, coverage, render
from training.shapes import GLYPHS
from training.vae import psnr

SEED = 77_000_000
SINGLE = ("colour", "background", "cutout", "shape", "move", "size")
QUADRANTS = {
    1: [(0, 0, 1, 1)],
    2: [(0, 0, 0.5, 1), (0.5, 0, 1, 1)],
    4: [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)],
}
PLACE_REACH, RADIUS_REACH = 0.08, 0.2


@dataclass
class Tally:
    """Shares of checks that held, by row of the table."""

    rows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: str, value: float) -> None:
        self.rows[row].append(float(value))

    def share(self, row: str) -> float:
        return sum(self.rows[row]) / len(self.rows[row]) if self.rows[row] else float("nan")


def regions(one: Example) -> list[tuple[float, float, float, float]]:
    """Where each thing of the target is looked for: the whole, halves, or quarters."""
    things = one.target.things
    if len(things) == 1:
        return QUADRANTS[1]
    if len(things) > 2:
        return [*QUADRANTS[4]][: len(things)]
    first, second = things
    if abs(first.x - second.x) > abs(first.y - second.y):
        halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
        return halves if first.x < second.x else halves[::-1]
    halves = [(0, 0, 1, 0.5), (0, 0.5, 1, 1)]
    return halves if first.y < second.y else halves[::-1]


def is_placed(seen: Seen, thing: Thing) -> bool:
    return abs(seen.x - thing.x) < PLACE_REACH and abs(seen.y - thing.y) < PLACE_REACH


def is_sized(seen: Seen, thing: Thing) -> bool:
    return abs(seen.radius / thing.radius - 1) < RADIUS_REACH


def name_of(rgb: tuple[float, float, float] | None) -> str:
    return "transparent" if rgb is None else next(name for name, value in PALETTE.items() if value == rgb)


def check(one: Example, picture: torch.Tensor) -> dict[str, bool]:
    """What of the asked is there; a check holds only if it holds for every thing."""
    seen = [see(picture, region) for region in regions(one)]
    pairs = list(zip(seen, one.target.things, strict=True))
    return {
        "background": background(picture)[0] == name_of(one.target.background),
        "colour": all(s is not None and s.colour == name_of(t.rgb) for s, t in pairs),
        "outline": all(s is not None and s.outline == t.outline for s, t in pairs),
        "place": all(s is not None and is_placed(s, t) for s, t in pairs),
        "size": all(s is not None and is_sized(s, t) for s, t in pairs),
    }


def fitted_alpha(one: Example, picture: torch.Tensor) -> float:
    """Overlap of the alpha plane with the asked outline, laid at the place and size that the seed chose."""
    if len(one.target.things) > 1:
        raise ValueError("alpha is fitted to one thing")
    _, thing = fit(picture[3], (one.target.things[0].outline,))[0]
    height, width = picture.shape[1:]
    return alpha_overlap(picture[3], coverage([thing], width, height)[0, 0])


def has_glyph(one: Example) -> bool:
    scenes = (one.target, *one.references)
    return any(t.outline in GLYPHS for s in scenes for t in s.things)


def held_out(kind: str, references: int, count: int, size_px: tuple[int, int], glyphs: bool = False) -> list[Example]:
    """Examples never trained on, of one kind; all with letters or digits, or all without."""
    random, chosen = Random(SEED + sum(map(ord, kind)) + references), []
    while len(chosen) < count:
        one = example(random, references, size_px, kind, held_out=not references)
        if has_glyph(one) == glyphs:
            chosen.append(one)
    return chosen


def score(pipe: Flux2KleinPipeline, size_px: tuple[int, int], steps: int = 4, count: int = 96) -> dict[str, float]:
    """The table's rows as shares, alpha overlaps as means."""
    tally = Tally()

    def drawn(kind: str, references: int, number: int, glyphs: bool = False):
        examples = held_out(kind, references, number, size_px, glyphs)
        return zip(examples, draw(pipe, examples, list(range(SEED, SEED + number)), steps), strict=True)

    for one, picture in drawn("generate", 0, 2 * count):
        for row, value in check(one, picture).items():
            tally.add({"outline": "shape"}.get(row, row), value)
        if one.target.background is None:
            tally.add("alpha", fitted_alpha(one, picture))
    for one, picture in drawn("generate", 0, count, glyphs=True):
        tally.add("letters", check(one, picture)["outline"])
    for one, picture in drawn("pair", 0, count):
        tally.add("pair", all(check(one, picture).values()))
    for kind in SINGLE:
        for one, picture in drawn(kind, 1, count):
            tally.add(f"edit {kind}", all(check(one, picture).values()))
            if kind == "cutout":
                tally.add("alpha of cut-outs", alpha_overlap(picture[3], render([one.target])[0, 3]))
    for kind in ("beside", "transfer"):
        for one, picture in drawn(kind, 2, count):
            tally.add(kind, all(check(one, picture).values()))
    for number in (3, 4):
        for one, picture in drawn("grid", number, count // 2):
            tally.add(f"grid of {number}", all(check(one, picture).values()))
    return {row: tally.share(row) for row in tally.rows}


def table(columns: dict[str, dict[str, float]]) -> str:
    """The scores as a Markdown table, one column per setting."""
    rows = list(next(iter(columns.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [f"{c[row]:.3f}" if row.startswith("alpha") else f"{100 * c[row]:.1f} %" for c in columns.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(checkpoint: Path, count: int, is_quick: bool) -> None:
    """Print the reconstruction and the table (128² and 256² at 4 steps, 128² at 32); write both into the card."""
    pipe = Flux2KleinPipeline.from_pretrained(checkpoint)
    started = time.time()
    settings = [(128, 4)] if is_quick else [(128, 4), (256, 4), (128, 32)]
    reconstruction = (
        f"VAE reconstruction of premultiplied RGBA: {psnr(pipe.vae, (64, 64)):.1f} dB at 64², "
        f"{psnr(pipe.vae, (128, 128)):.1f} dB at 128², {psnr(pipe.vae, (256, 256), 16):.1f} dB at 256²."
    )
    print(reconstruction, flush=True)
    columns = {}
    for side, steps in settings:
        number = count if steps == 4 else count // 3
        columns[f"{side}², {steps} steps"] = score(pipe, (side, side), steps, number)
        print(f"scored {side}² at {steps} steps after {time.time() - started:.0f} s", flush=True)
    print(table(columns))
    counts = f"{2 * count} with one thing, {count // 2} per grid, {count} per other row, a third at 32 steps"
    card.write(checkpoint, reconstruction, counts, table(columns))
