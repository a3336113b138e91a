"""Prompts that change one reference or join several, and the scenes that they ask for."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from training.captions import background_words, outline_words, spell
from training.requests import (
    TRANSPARENT_PHRASE,
    Example,
    Noun,
    pick_background,
    pick_colour,
    pick_outline,
    pick_scene,
    rgb,
)
from training.scene import PALETTE, SIZES, Scene, fitted
from training.vocabulary import BESIDE, CUT, GRIDS, LARGER, REBACK, RECOLOUR, RESHAPE, SMALLER, TRANSFER

STEP = 0.22  # how far "left" moves a thing, as a fraction of the side
SCALE = 1.5  # how much "larger" is
CELL_RADIUS = 0.19
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
GRID = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))


def subject(random: Random, noun: Noun) -> str:
    """What the prompt calls the thing in the reference."""
    outline = outline_words(random, noun.outline)
    return random.choice(("it", "it", f"the {outline}", f"the {outline}", f"the {noun.colour} {outline}", "the object"))


def _finished(random: Random, kind: str, text: str, reference: Scene, target: Scene) -> Example:
    if random.random() < 0.07:  # a server that wants a cut-out appends the phrase to any edit
        text, target = f"{text}, {TRANSPARENT_PHRASE}", replace(target, background=None)
    return Example(kind, spell(random, text), (reference,), target)


def colour(random: Random, size_px: tuple[int, int]) -> Example:
    """The same thing in another colour."""
    scene, noun, background = pick_scene(random, size_px, spread=0.25)
    new = pick_colour(random, noun.colour, background)
    target = replace(scene, things=(replace(scene.things[0], rgb=PALETTE[new]),))
    return _finished(random, "colour", random.choice(RECOLOUR).format(subject(random, noun), new), scene, target)


def shape(random: Random, size_px: tuple[int, int]) -> Example:
    """Another outline in the same colour, place and size."""
    scene, noun, _ = pick_scene(random, size_px, spread=0.25)
    new = pick_outline(random, 0.15)
    while new == noun.outline:
        new = pick_outline(random, 0.15)
    target = replace(scene, things=(replace(scene.things[0], outline=new),))
    text = random.choice(RESHAPE).format(subject(random, noun), outline_words(random, new))
    return _finished(random, "shape", text, scene, target)


def background(random: Random, size_px: tuple[int, int]) -> Example:
    """The same thing on another colour."""
    scene, noun, old = pick_scene(random, size_px, spread=0.25)
    new = pick_colour(random, noun.colour, old)
    return _finished(
        random, "background", random.choice(REBACK).format(new), scene, replace(scene, background=PALETTE[new])
    )


def cutout(random: Random, size_px: tuple[int, int]) -> Example:
    """The same thing on nothing."""
    scene, _, _ = pick_scene(random, size_px, spread=0.25)
    return Example("cutout", spell(random, random.choice(CUT)), (scene,), replace(scene, background=None))


def move(random: Random, size_px: tuple[int, int]) -> Example:
    """The same thing a step further in one direction, as far as the margin allows."""
    name, (dx, dy) = random.choice(list(DIRECTIONS.items()))
    scene, noun, _ = pick_scene(random, size_px, 0.5 - dx * STEP / 2, 0.5 - dy * STEP / 2, spread=0.12)
    old = scene.things[0]
    if old.radius > 0.27:
        scene = replace(scene, things=(replace(old, radius=old.radius * 0.75),))
        old = scene.things[0]
    moved = fitted(replace(old, x=old.x + dx * STEP, y=old.y + dy * STEP), *size_px)
    words = random.choice((name, f"to the {name}", name)) if dx else name
    text = f"{random.choice(('move', 'move', 'shift', 'push'))} {subject(random, noun)} {words}"
    return _finished(random, "move", text, scene, replace(scene, things=(moved,)))


def size(random: Random, size_px: tuple[int, int]) -> Example:
    """The same thing larger or smaller about its own centre."""
    scene, noun, _ = pick_scene(random, size_px, spread=0.12)
    grows = random.random() < 0.5
    old = replace(scene.things[0], radius=random.uniform(*((0.12, 0.24) if grows else (0.18, 0.35))))
    old = fitted(old, *size_px)
    new = fitted(replace(old, radius=old.radius * (SCALE if grows else 1 / SCALE)), *size_px)
    text = random.choice(LARGER if grows else SMALLER).format(subject(random, noun))
    return _finished(random, "size", text, replace(scene, things=(old,)), replace(scene, things=(new,)))


def _joined(
    random: Random, size_px: tuple[int, int], spots: tuple[tuple[float, float], ...], kind: str, text: str
) -> Example:
    drawn = [pick_scene(random, size_px, spread=0.1) for _ in spots]
    back = pick_background(random, *(noun.colour for _, noun, _ in drawn))
    things = tuple(
        fitted(replace(scene.things[0], x=x, y=y, radius=CELL_RADIUS), *size_px)
        for (scene, _, _), (x, y) in zip(drawn, spots, strict=True)
    )
    text = f"{text} {background_words(random, back)}"
    return Example(kind, spell(random, text), tuple(scene for scene, _, _ in drawn), Scene(things, rgb(back), *size_px))


def beside(random: Random, size_px: tuple[int, int]) -> Example:
    """The things of two references, the first on the left."""
    return _joined(random, size_px, ((0.25, 0.5), (0.75, 0.5)), "beside", random.choice(BESIDE))


def grid(random: Random, size_px: tuple[int, int], count: int) -> Example:
    """The things of three or four references in reading order."""
    return _joined(random, size_px, GRID[:count], "grid", random.choice(GRIDS[count]))


def transfer(random: Random, size_px: tuple[int, int]) -> Example:
    """The first reference's outline in the second one's colour, medium, in the middle."""
    (first, _, _), (second, noun, _) = pick_scene(random, size_px, spread=0.1), pick_scene(random, size_px, spread=0.1)
    back = pick_background(random, noun.colour)
    thing = replace(first.things[0], rgb=second.things[0].rgb, x=0.5, y=0.5, radius=SIZES["medium"])
    text = f"{random.choice(TRANSFER)} {background_words(random, back)}"
    return Example("transfer", spell(random, text), (first, second), Scene((thing,), rgb(back), *size_px))


EDITS: dict[str, Callable[[Random, tuple[int, int]], Example]] = {
    "colour": colour,
    "background": background,
    "cutout": cutout,
    "shape": shape,
    "move": move,
    "size": size,
}
