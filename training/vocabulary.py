"""The words that prompts are made of. A phrase that stands twice is said twice as often."""

from training.requests import TRANSPARENT_PHRASE

PLACE_WORDS = {
    "center": ("", "", "", "in the center", "in the middle", "in the centre", "centered"),
    "left": ("on the left", "on the left", "at the left", "on the left side", "to the left", "left"),
    "right": ("on the right", "on the right", "at the right", "on the right side", "to the right", "right"),
    "top": ("at the top", "at the top", "near the top", "on the top", "top"),
    "bottom": ("at the bottom", "at the bottom", "near the bottom", "on the bottom", "bottom"),
}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("", "", "", "", "medium", "medium sized"),
    "large": ("large", "large", "big", "huge"),
}
OPENINGS = (
    "draw",
    "a picture of",
    "an image of",
    "please draw",
    "show me",
    "make",
    "generate",
    "create",
    "i want",
    "there is",
)
EXTRAS = (
    "nice",
    "simple",
    "beautiful",
    "clean",
    "flat",
    "plain",
    "just",
    "really",
    "very",
    "please",
    "icon",
    "style",
    "minimal",
    "bright",
)
BACKGROUND_WORDS = (
    "on a {} background",
    "on a {} background",
    "on {}",
    "with a {} background",
    "against a {} background",
    "in front of a {} background",
    "{} background",
    "background {}",
    "the background is {}",
)
CUT_WORDS = (
    "on a transparent background",
    "on a transparent background",
    "with a transparent background",
    "with transparent background",
    TRANSPARENT_PHRASE,
    TRANSPARENT_PHRASE,
    "on transparent",
    "with no background",
    "without a background",
    "isolated on a transparent background",
)
RELATIONS = {
    "left of": "beside",
    "to the left of": "beside",
    "next to": "beside",
    "beside": "beside",
    "and": "beside",
    "right of": "beside reversed",
    "to the right of": "beside reversed",
    "above": "above",
    "over": "above",
    "on top of": "above",
    "below": "above reversed",
    "under": "above reversed",
}
LARGER = ("make {} larger", "make {} bigger", "enlarge {}", "scale {} up", "make {} large")
SMALLER = ("make {} smaller", "shrink {}", "scale {} down", "make {} little")
RECOLOUR = (
    "make {} {}",
    "make {} {}",
    "change {} to {}",
    "turn {} {}",
    "paint {} {}",
    "change the colour of {} to {}",
    "change the color of {} to {}",
    "recolor {} {}",
)
RESHAPE = (
    "turn {} into a {}",
    "turn {} into a {}",
    "change {} into a {}",
    "change {} to a {}",
    "replace {} with a {}",
    "make {} a {}",
)
REBACK = (
    "change the background to {}",
    "make the background {}",
    "set the background to {}",
    "put it on a {} background",
    "{} background",
    "turn the background {}",
)
CUT = (
    "remove the background",
    "remove the background",
    "cut it out",
    "make the background transparent",
    "delete the background",
    "put it on a transparent background",
    TRANSPARENT_PHRASE,
)
BESIDE = (
    "put image 1 and image 2 side by side",
    "put them side by side",
    "image 1 and image 2 side by side",
    "place image 1 next to image 2",
    "put the two images next to each other",
    "image 1 left of image 2",
    "combine both images side by side",
)
GRIDS = {
    3: (
        "put image 1, image 2 and image 3 in a grid",
        "put the three images in a grid",
        "arrange the three in a grid",
        "put them in a grid",
    ),
    4: (
        "put image 1, image 2, image 3 and image 4 in a grid",
        "put the four images in a grid",
        "arrange all four in a grid",
        "put them in a grid",
    ),
}
TRANSFER = (
    "the shape of image 1 in the colour of image 2",
    "the shape of image 1 in the colour of image 2",
    "the shape of image 1 with the color of image 2",
    "draw the shape from image 1 in the color of image 2",
    "give image 1 the colour of image 2",
)
