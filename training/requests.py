"""One training example: what is asked, what comes with it, what should come out."""

from dataclasses import dataclass
from random import Random

from training.scene import COLOURS, PALETTE, SIZES, Scene, Thing, fitted
from training.shapes import GLYPHS, SHAPES

TRANSPARENT_PHRASE = "transparent background"
KINDS = ("generate", "pair", "colour", "background", "cutout", "shape", "move", "size", "beside", "grid", "transfer")


@dataclass(frozen=True)
class Example:
    """A prompt with its references and the picture that answers it.

    size_px is (width, height) of target and references alike.
    """

    kind: str
    prompt: str
    references: tuple[Scene, ...]
    target: Scene


@dataclass(frozen=True)
class Noun:
    """A thing as words have it, before it has a place in pixels."""

    outline: str
    colour: str
    size: str = "medium"

    @property
    def rgb(self) -> tuple[float, float, float]:
        return PALETTE[self.colour]


def pick_outline(random: Random, glyph_share: float = 0.15) -> str:
    return random.choice(GLYPHS if random.random() < glyph_share else SHAPES)


def pick_colour(random: Random, *taken: str | None) -> str:
    return random.choice([c for c in COLOURS if c not in taken])


def pick_background(random: Random, *taken: str, transparent_share: float = 0.25) -> str | None:
    """A colour's name, or None for transparent."""
    return None if random.random() < transparent_share else pick_colour(random, *taken)


def rgb(colour: str | None) -> tuple[float, float, float] | None:
    return PALETTE[colour] if colour else None


def pick_scene(
    random: Random, size_px: tuple[int, int], x: float = 0.5, y: float = 0.5, spread: float = 0.0
) -> tuple[Scene, Noun, str | None]:
    """One thing of any size at about (x, y), with the words for it and for its background."""
    noun = Noun(pick_outline(random), pick_colour(random), random.choice(list(SIZES)))
    background = pick_background(random, noun.colour)
    thing = Thing(
        noun.outline,
        noun.rgb,
        x + random.uniform(-spread, spread),
        y + random.uniform(-spread, spread),
        SIZES[noun.size] * random.uniform(0.93, 1.07),
    )
    return Scene((fitted(thing, *size_px),), rgb(background), *size_px), noun, background
