"""Previews: a small map from latents to colours, fitted at load against the loaded VAE. No constants of any model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kleinserve.core import EDGE_MULTIPLE, Pixels, Preview, PreviewFormat, Size
from kleinserve.engine import alpha
from kleinserve.engine.pixels import Fetch
from kleinserve.engine.vae import Vae, finished

SCALE = 8  # a preview pixel is 8 × 8 image pixels: one cell of the unpatchified latents
_PICTURES = 64
_EDGE = 64
_AT_ONCE = 16
_MIXTURES = 192  # twice as many gain nothing on mini
_SEED = 0


class PreviewMap:
    """A 3 × 3 convolution, plus rectified random mixtures of each cell: what is linear, and what bends.

    A linear map alone tints: colours saturate, latents do not. On mini it is 20 levels off on plain grounds, this is 5.
    """

    def __init__(self, vae: Vae, tokens: Tensor, size: Size, wanted: Tensor):
        """Fit by least squares: tokens [B, T, C] to pictures [B, channels, H/8, W/8]."""
        self._vae = vae
        latents = vae.latents(tokens, size)
        self._centre = latents.mean(dim=(0, 2, 3), keepdim=True)
        self._spread = latents.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)  # a VAE may leave channels unused
        generator, channels = torch.Generator().manual_seed(_SEED), latents.shape[1]
        mix = torch.randn(_MIXTURES, channels, 1, 1, generator=generator) * 2 / channels**0.5
        self._mix = mix.to(vae.device), torch.randn(_MIXTURES, generator=generator).to(vae.device)

        cells = self._cells(tokens, size)
        columns = torch.cat([F.unfold(_padded(cells), 3), self._mixtures(cells).flatten(2)], dim=1)
        columns = F.pad(columns.transpose(1, 2).flatten(0, 1), (0, 1), value=1.0).double()
        normal = columns.T @ columns
        # A ridge keeps the normal equations regular where columns depend on one another.
        ridge = 1e-5 * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
        answers = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
        solved = torch.linalg.solve(normal + ridge, columns.T @ answers).float().T.contiguous()
        near, far, bias = solved.split([9 * channels, _MIXTURES, 1], dim=1)
        self._near, self._far, self._bias = near.unflatten(1, (channels, 3, 3)), far[:, :, None, None], bias[:, 0]

    @torch.inference_mode()
    def draw(self, estimates: Tensor, size: Size, *, is_cut_out: bool) -> Tensor:
        """x0 estimates of one size, float32 [B, T, C] -> [B, channels, H/8, W/8] in −1..1, nominally.

        Of a VAE with alpha 4 channels for a cut-out; else 3, composited on white.
        """
        cells = self._cells(estimates, size)
        linear = F.conv2d(_padded(cells), self._near, self._bias)
        drawn = linear + F.conv2d(self._mixtures(cells), self._far)
        return _straight(drawn) if is_cut_out else drawn[:, :3]

    def _cells(self, tokens: Tensor, size: Size) -> Tensor:
        return (self._vae.latents(tokens, size) - self._centre) / self._spread

    def _mixtures(self, cells: Tensor) -> Tensor:
        return F.relu(F.conv2d(cells, *self._mix))


@torch.inference_mode()
def fit(vae: Vae) -> PreviewMap:
    """The least-squares map against `vae` on plain grounds, ramps and shapes, encoded and decoded by it.

    Cost: an encode and a decode of 64 pictures of 64 × 64, once, at load.
    """
    size = Size(_EDGE, _EDGE)
    tokens = torch.cat([finished(vae.encode(pictures)) for pictures in _pictures(vae.channels).split(_AT_ONCE)])
    decoded = torch.cat([finished(vae.decode(list(group), size)) for group in tokens.split(_AT_ONCE)])
    return PreviewMap(vae, tokens, size, F.avg_pool2d(_on_white(decoded.clamp(-1, 1)), SCALE))


def picture(fetch: Callable[[], Fetch], place: int) -> Pixels:
    """One of the pictures that are on their way to the host."""
    return alpha.pixels(fetch().array()[place])


def latent(fetch: Callable[[], Fetch], place: int, step: int, steps: int, size: Size) -> Preview:
    """One of the latents, as the wire has them."""
    values = fetch().array()[place]
    shape = (size.width // EDGE_MULTIPLE, size.height // EDGE_MULTIPLE, len(values))
    return Preview(step, steps, PreviewFormat.LATENT, *shape, values.astype("<f2").tobytes())


def _padded(cells: Tensor) -> Tensor:
    return F.pad(cells, (1, 1, 1, 1), mode="replicate")


def _on_white(pictures: Tensor) -> Tensor:
    """RGBA with its colour composited on white, alpha kept; RGB as it is. Colour under alpha 0 means nothing."""
    if pictures.shape[1] == 3:
        return pictures
    opacity = pictures[:, 3:] / 2 + 0.5
    return torch.cat([pictures[:, :3] * opacity + (1 - opacity), pictures[:, 3:]], dim=1)


def _straight(pictures: Tensor) -> Tensor:
    """The inverse of `_on_white`, which it reproduces: what is darker than white is at least so opaque."""
    if pictures.shape[1] == 3:
        return pictures
    colours = pictures[:, :3].clamp(-1, 1)
    darkest = (1 - colours.amin(dim=1, keepdim=True)) / 2
    opacity = torch.maximum(pictures[:, 3:] / 2 + 0.5, darkest).clamp(1 / 255, 1)
    return torch.cat([((colours - 1) / opacity + 1).clamp(-1, 1), opacity * 2 - 1], dim=1)


def _pictures(channels: int) -> Tensor:
    """[64, channels, 64, 64] in −1..1: up to 3 shapes on a grey, a colour, a ramp of colours, or nothing.

    The first quarter's grounds go from black to white, the others' colours cover the cube evenly.
    """
    generator = torch.Generator().manual_seed(_SEED)
    pictures = torch.ones(_PICTURES, channels, _EDGE, _EDGE)
    colours = torch.quasirandom.SobolEngine(3, scramble=True, seed=_SEED).draw(_PICTURES)
    greys = _PICTURES // 4
    for i, picture in enumerate(pictures):
        if i < greys:
            picture[:3] = i / (greys - 1)
        elif i % 4 == 0:
            coarse = torch.rand(1, 3, 4, 4, generator=generator) * 1.6 - 0.3
            picture[:3] = F.interpolate(coarse, size=(_EDGE, _EDGE), mode="bicubic")[0].clamp(0, 1)
        elif i % 4 == 3 and channels == 4:
            picture[:] = 0
        else:
            picture[:3] = colours[i, :, None, None]
        for _ in range(int(torch.randint(0, 4, (), generator=generator))):
            _add_shape(picture, generator)
    return pictures * 2 - 1


def _add_shape(picture: Tensor, generator: torch.Generator) -> None:
    """An opaque rectangle or ellipse of one colour, in place."""
    lines = torch.arange(_EDGE) / _EDGE
    top, left, height, width, kind, *colour = torch.rand(8, generator=generator).tolist()
    down, across = (lines - top) / (0.08 + 0.3 * height), (lines - left) / (0.08 + 0.3 * width)
    grown = torch.stack(torch.meshgrid(down, across, indexing="ij"))
    inside = (grown.abs().amax(dim=0) if kind < 0.5 else grown.square().sum(dim=0)) < 1
    picture[:3, inside] = torch.tensor(colour)[:, None]
    picture[3:, inside] = 1
