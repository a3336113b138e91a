"""Which examples are drawn how often, and which are kept for scoring. Knows the kinds, not how they look."""

import zlib
from functools import partial
from random import Random

from training import captions, edits
from training.requests import Example

ALONE = {"generate": 0.40, "glyph": 0.40, "pair": 0.20}
ONE = {"colour": 1.2, "background": 0.4, "cutout": 0.4, "shape": 2.2, "move": 1.6, "size": 2.0}
TWO = {"beside": 0.8, "transfer": 0.2}
SOLID = ("circle", "square", "triangle", "diamond", "heart")  # learned early: of these fewer are trained on
SOLID_SHARE = 0.35
MAKERS = {
    "generate": captions.generate,
    "glyph": partial(captions.generate, glyph_share=1.0),
    "pair": captions.pair,
    "beside": edits.beside,
    "transfer": edits.transfer,
    **edits.EDITS,
}


def is_held_out(one: Example) -> bool:
    """True of every eighth describing prompt; an edit's words are few, so there the pictures are what is new."""
    return not one.references and zlib.crc32(one.prompt.lower().encode()) % 8 == 0


def example(
    random: Random, references: int, size_px: tuple[int, int], kind: str | None = None, held_out: bool = False
) -> Example:
    """One example with that many references: of a given kind, or of the mixture that is trained on."""
    if references > 2:
        return edits.grid(random, size_px, references)
    weights = (ALONE, ONE, TWO)[references]
    drawn = kind or random.choices(list(weights), list(weights.values()))[0]
    while True:
        one = MAKERS[drawn](random, size_px)
        if not one.references and is_held_out(one) != held_out:
            continue
        if kind or one.target.things[0].outline not in SOLID or random.random() < SOLID_SHARE:
            return one
