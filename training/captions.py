"""Prompts that describe one or two things, and the scenes they describe. Knows no references."""

from random import Random

from training.requests import TRANSPARENT_PHRASE, Example, Noun, pick_background, pick_colour, pick_outline
from training.scene import PALETTE, SIZES, Scene, Thing, fitted
from training.shapes import SHAPES
from training.vocabulary import BACKGROUND_WORDS, CUT_WORDS, EXTRAS, OPENINGS, PLACE_WORDS, RELATIONS, SIZE_WORDS

# How far two seeds differ in place and size: with 0.03 and 0.07 the tokens of one edge disagree for thousands of steps.
OFFSET, SPREAD = 0.004, 0.01
PAIR_SIZES = {"small": 0.12, "medium": 0.17, "large": 0.20}  # two of them fit side by side
PLACES = {"center": (0.5, 0.5), "left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}


def spell(random: Random, text: str) -> str:
    """The same words as people type them: upper case, full stops, an extra word here and there."""
    words = text.split()
    if random.random() < 0.08:
        words.insert(random.randrange(len(words)), random.choice(EXTRAS))
    text = " ".join(words)
    text += random.choice(("", "", "", ".", "!"))
    if random.random() < 0.1:
        text = text.replace("gray", "grey")
    return random.choice((text, text, text[:1].upper() + text[1:], text.upper() if random.random() < 0.3 else text))


def article(random: Random, word: str) -> str:
    return random.choice(("", "the ", "one ")) if random.random() < 0.2 else ("an " if word[0] in "aeiou" else "a ")


def outline_words(random: Random, outline: str) -> str:
    if outline in SHAPES:
        return outline
    kind = (
        random.choice(("digit", "number"))
        if outline.isdigit()
        else random.choice(("letter", "letter", "capital letter"))
    )
    return f"{kind} {outline}"


def noun_words(random: Random, noun: Noun) -> str:
    """As in "a large red circle", "circle in red", "the red letter K", without or with its article."""
    size, outline = random.choice(SIZE_WORDS[noun.size]), outline_words(random, noun.outline)
    form = random.random()
    if form < 0.75:
        text = f"{size} {noun.colour} {outline}"
    elif form < 0.85:
        text = f"{noun.colour} {size} {outline}"
    else:
        text = f"{size} {outline} {random.choice(('in', 'in', 'that is', 'coloured'))} {noun.colour}"
    text = " ".join(text.split())
    return article(random, text) + text


def background_words(random: Random, background: str | None) -> str:
    return random.choice(BACKGROUND_WORDS).format(background) if background else random.choice(CUT_WORDS)


def unsaid_background(colours: list[str]) -> str:
    """What lies behind when the prompt does not say: white, or the first of black and gray that shows the things."""
    return next(c for c in ("white", "black", "gray") if c not in colours)


def with_background(random: Random, text: str, colours: list[str]) -> tuple[str, str | None]:
    """The prompt with its background said before, after or not at all, and that background."""
    chance = random.random()
    if chance < 0.12:
        return text, unsaid_background(colours)
    background = pick_background(random, *colours, transparent_share=0.3)
    if chance < 0.16:  # a server that appends the phrase to a finished prompt: the phrase wins
        return f"{text} {background_words(random, pick_colour(random))}, {TRANSPARENT_PHRASE}", None
    if chance < 0.20:
        return f"{text}, {TRANSPARENT_PHRASE}", None
    words = background_words(random, background)
    return (f"{words}, {text}" if chance < 0.30 else f"{text}{random.choice(('', '', ','))} {words}"), background


def placed(noun: Noun, place: str, radius: float, size_px: tuple[int, int], random: Random) -> Thing:
    """The thing at its place, as far off as two seeds may differ."""
    x, y = PLACES[place]
    thing = Thing(
        noun.outline,
        noun.rgb,
        x + random.uniform(-OFFSET, OFFSET),
        y + random.uniform(-OFFSET, OFFSET),
        radius * random.uniform(1 - SPREAD, 1 + SPREAD),
    )
    return fitted(thing, *size_px)


def generate(random: Random, size_px: tuple[int, int], glyph_share: float = 0.15) -> Example:
    """One thing somewhere on some background."""
    sizes = ("small", "medium", "medium", "large")
    noun = Noun(pick_outline(random, glyph_share), pick_colour(random), random.choice(sizes))
    place = random.choice([*PLACES, "center"])
    place_words = random.choice(PLACE_WORDS[place])
    words = noun_words(random, noun)
    text = f"{place_words} {words}" if random.random() < 0.12 else f"{words} {place_words}"
    if random.random() < 0.15:
        text = f"{random.choice(OPENINGS)} {text}"
    text, background = with_background(random, text.strip(), [noun.colour])
    scene = Scene(
        (placed(noun, place, SIZES[noun.size], size_px, random),), PALETTE[background] if background else None, *size_px
    )
    return Example("generate", spell(random, text), (), scene)


def pair_things(
    first: Noun, second: Noun, relation: str, size_px: tuple[int, int], random: Random
) -> tuple[Thing, ...]:
    """Two things side by side or one above the other; reversed puts the first right of or below the second."""
    ends = ("left", "right") if relation.startswith("beside") else ("top", "bottom")
    if relation.endswith("reversed"):
        ends = ends[::-1]
    return tuple(
        placed(n, end, PAIR_SIZES[n.size], size_px, random) for n, end in zip((first, second), ends, strict=True)
    )


def pair(random: Random, size_px: tuple[int, int]) -> Example:
    """Two things in a named relation."""
    nouns = [
        Noun(
            pick_outline(random, 0.12),
            pick_colour(random),
            random.choice(("small", "medium", "medium", "medium", "large")),
        )
        for _ in range(2)
    ]
    relation_words = random.choice(list(RELATIONS))
    text = f"{noun_words(random, nouns[0])} {relation_words} {noun_words(random, nouns[1])}"
    text, background = with_background(random, text, [n.colour for n in nouns])
    things = pair_things(*nouns, RELATIONS[relation_words], size_px, random)
    return Example(
        "pair", spell(random, text), (), Scene(things, PALETTE[background] if background else None, *size_px)
    )
