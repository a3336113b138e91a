"""The renderer draws what a scene says, at every size."""

import pytest
import torch

from training.measure import background, see
from training.scene import COLOURS, PALETTE, Scene, Thing, fitted, render
from training.shapes import OUTLINES, SHAPES


def one_thing(outline: str, colour: str, back: str | None, size_px: tuple[int, int] = (128, 128)) -> Scene:
    return Scene((Thing(outline, PALETTE[colour], 0.4, 0.55, 0.25),), back and PALETTE[back], *size_px)


@pytest.mark.parametrize("outline", OUTLINES)
def test_every_outline_is_told_from_all_others(outline: str) -> None:
    """The best overlap over all outlines names the one that was drawn, where it was drawn."""
    seen = see(render([one_thing(outline, "blue", "white")])[0])
    assert seen is not None
    assert (seen.outline, seen.colour) == (outline, "blue")
    assert abs(seen.x - 0.4) < 0.02
    assert abs(seen.y - 0.55) < 0.02
    assert abs(seen.radius / 0.25 - 1) < 0.05


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_named_as_ground_and_as_thing(colour: str) -> None:
    """A palette colour is recognised behind and in front."""
    other = "black" if colour != "black" else "white"
    assert background(render([one_thing("star", other, colour)])[0])[0] == colour
    seen = see(render([one_thing("star", colour, other)])[0])
    assert seen is not None
    assert seen.colour == colour


def test_transparent_is_colourless_and_straight() -> None:
    """Where alpha is 0 colour is 0, and an anti-aliased edge keeps the thing's full colour."""
    picture = render([one_thing("circle", "orange", None)])[0]
    assert (picture[:3, picture[3] == 0] == 0).all()
    edge = (picture[3] > 0.05) & (picture[3] < 0.95)
    assert edge.any()
    assert torch.allclose(
        picture[:3, edge], torch.tensor(PALETTE["orange"]).view(3, 1).expand(3, int(edge.sum())), atol=1e-4
    )


@pytest.mark.parametrize("size_px", [(64, 64), (64, 128), (256, 128), (256, 256)])
def test_the_same_scene_is_the_same_at_every_size(size_px: tuple[int, int]) -> None:
    """Coverage scales with the shorter side alone."""
    picture = render([one_thing("square", "red", None, size_px)])[0]
    side = min(size_px) * 0.25 * 0.86 * 2
    assert picture.shape == (4, size_px[1], size_px[0])
    assert abs(float(picture[3].sum()) / side**2 - 1) < 0.04


@pytest.mark.parametrize("outline", SHAPES)
def test_fitted_things_stay_inside(outline: str) -> None:
    """A thing pushed over the edge comes back with a clear border around it."""
    thing = fitted(Thing(outline, PALETTE["red"], 0.0, 1.0, 0.33), 128, 64)
    alpha = render([Scene((thing,), None, 128, 64)])[0, 3]
    assert alpha.sum() > 100
    assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) == 0
