"""Previews are fitted, and their fit is measured."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kleinserve.core import Operation, Size
from kleinserve.engine import checkpoint, preview
from kleinserve.engine.vae import Vae, finished
from torch import Tensor

from tests.engine.checkpoints import klein
from tests.engine.drawing import ask, begin, loaded

SIZE = Size(128, 128)
RED = (0.9, 0.1, 0.1)


@pytest.fixture(scope="module")
def vae() -> Vae:
    torch.set_num_threads(1)
    modules = checkpoint.load(checkpoint.find("mini"), torch.float32)
    return Vae(modules.vae, torch.device("cpu"), SIZE.pixels)


@pytest.fixture(scope="module")
def fitted(vae: Vae) -> preview.PreviewMap:
    return preview.fit(vae)


def scene(ground: tuple[float, ...], shape: tuple[float, ...] | None = None) -> Tensor:
    """[1, 4, 128, 128]: a plain ground (nothing, if it has no colour) with at most one rectangle."""
    picture = torch.ones(1, 4, 128, 128) if ground else torch.zeros(1, 4, 128, 128)
    if ground:
        picture[0, :3] = torch.tensor(ground)[:, None, None]
    if shape:
        picture[0, :3, 40:90, 30:100] = torch.tensor(shape)[:, None, None]
        picture[0, 3, 40:90, 30:100] = 1
    return picture * 2 - 1


def levels_off(picture: Tensor, vae: Vae, fitted: preview.PreviewMap) -> Tensor:
    """The preview less the decoded picture scaled down, both on white, in 1/255: [channels, 16, 16]."""
    tokens = finished(vae.encode(picture))[0]
    drawn = preview._on_white(fitted.draw(tokens[None], SIZE, is_cut_out=True).clamp(-1, 1))[0]
    decoded = preview._on_white(finished(vae.decode([tokens], SIZE)).clamp(-1, 1))
    return (drawn - F.avg_pool2d(decoded, preview.SCALE)[0]) * 127.5


@pytest.mark.parametrize(
    ("ground", "levels_max"),
    [((1, 1, 1), 2), ((0, 0, 0), 2), ((0.9,) * 3, 6), ((0.5,) * 3, 6), ((0.2, 0.3, 0.8), 9), ((0.2, 0.6, 0.3), 9)],
)
def test_plain_ground_keeps_its_colour(
    ground: tuple[float, ...], levels_max: float, vae: Vae, fitted: preview.PreviewMap
) -> None:
    """A plain white, grey or coloured picture has a preview of its colour, not a tinted one."""
    assert levels_off(scene(ground), vae, fitted)[:3].mean(dim=(1, 2)).abs().max() < levels_max


@pytest.mark.parametrize("ground", [(0.1, 0.2, 0.85), (1.0, 1.0, 1.0), (0.6, 0.6, 0.6), ()])
def test_preview_resembles_the_picture(ground: tuple[float, ...], vae: Vae, fitted: preview.PreviewMap) -> None:
    """On a picture it has not seen, opaque or cut out, the preview's colours are within 22 dB of the decoded ones."""
    error = (levels_off(scene(ground, RED), vae, fitted)[:3] / 255).square().mean()
    assert -10 * torch.log10(error) > 22


def test_preview_knows_what_is_transparent(vae: Vae, fitted: preview.PreviewMap) -> None:
    """Nothing is drawn as nothing, an opaque picture as opaque."""
    for picture in (scene(()), scene((1, 1, 1)), scene((0.5, 0.5, 0.5))):
        assert levels_off(picture, vae, fitted)[3].mean().abs() < 16


def test_straight_colour_recomposes() -> None:
    """Whatever the map gives, the cut-out shown on white again is what it gave."""
    given = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(preview._on_white(preview._straight(given))[:, :3], given[:, :3])


def test_an_opaque_preview_is_the_cut_out_on_white(vae: Vae, fitted: preview.PreviewMap) -> None:
    """What nobody wants cut out is drawn on white at once."""
    tokens = finished(vae.encode(scene((), RED)))
    opaque, cut_out = (fitted.draw(tokens, SIZE, is_cut_out=wanted).clamp(-1, 1) for wanted in (False, True))
    torch.testing.assert_close(opaque, preview._on_white(cut_out)[:, :3])


def test_a_preview_shows_its_own_step_however_late_it_is_drawn() -> None:
    """On a CPU it is drawn when it is asked for: after the next step it still shows the one before."""
    engine = loaded()
    [render] = begin(engine, [ask("1", Operation.GENERATE, "a red circle", (), Size(64, 64), 1, 2, 1.0)])
    engine.step([render])
    [shown], [shown_late] = engine.previews([render]), engine.previews([render])
    first = shown()
    engine.step([render])
    assert shown_late() == first
    [last] = engine.previews([render])
    assert last() != first


def test_three_channels_make_rgb(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A VAE without alpha has RGB previews an eighth of the picture's size."""
    modules = checkpoint.load(checkpoint.find(str(klein(tmp_path_factory.mktemp("klein")))), torch.float32)
    vae = Vae(modules.vae, torch.device("cpu"), SIZE.pixels)
    drawn = preview.fit(vae).draw(torch.randn(2, 8 * 4, vae.latent_channels), Size(64, 128), is_cut_out=True)
    assert drawn.shape == (2, 3, 16, 8)
    assert drawn.isfinite().all()
