"""Previews: a small linear map from latents to colours, fitted at load against the loaded VAE. No constants."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kleinserve.core import Size
from kleinserve.engine.vae import Vae, grid

SCALE = 8  # a preview pixel is 8 × 8 image pixels: one cell of the unpatchified latents
_FIT_PICTURES = 16
_FIT_EDGE = 128
_SEED = 0


class PreviewMap:
    """A 3 × 3 convolution from BN-normalised, unpatchified latents to the picture, 8 times smaller."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self._weight, self._bias = weight, bias

    @torch.inference_mode()
    def draw(self, estimate: Tensor, size: Size) -> Tensor:
        """An x0 estimate, float32 [T, C] -> [channels, H/8, W/8] in −1..1, nominally."""
        cells = F.pixel_shuffle(grid(estimate[None], size), 2)
        return _straight(F.conv2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), self._weight, self._bias))[0]


def fit(vae: Vae) -> PreviewMap:
    """The least-squares map against `vae` on pictures of random rectangles and ramps, encoded and decoded by it.

    Cost: one encode and one decode of 16 pictures of 128 × 128, once, at load.
    """
    pictures = _pictures(vae.channels)
    size = Size(_FIT_EDGE, _FIT_EDGE)
    tokens = torch.cat([vae.encode(picture[None]) for picture in pictures])
    decoded = torch.cat([vae.decode([t], size) for t in tokens])
    target = F.avg_pool2d(_on_white(decoded.clamp(-1, 1)), SCALE)
    cells = F.pad(F.pixel_shuffle(grid(tokens, size), 2), (1, 1, 1, 1), mode="replicate")
    columns = F.unfold(cells, 3).transpose(1, 2).flatten(0, 1)  # [cells, C × 9]
    columns = torch.cat([columns, columns.new_ones(len(columns), 1)], dim=1).double()
    wanted = target.flatten(2).transpose(1, 2).flatten(0, 1).double()
    # A ridge keeps the normal equations regular where a VAE leaves latent channels unused.
    normal = columns.T @ columns
    ridge = 1e-6 * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    solved = torch.linalg.solve(normal + ridge, columns.T @ wanted).float()
    weight = solved[:-1].T.unflatten(1, (cells.shape[1], 3, 3)).contiguous()
    return PreviewMap(weight, solved[-1].contiguous())


def _on_white(pictures: Tensor) -> Tensor:
    """RGBA with its colour composited on white, alpha kept; RGB as it is. Colour under alpha 0 means nothing."""
    if pictures.shape[1] == 3:
        return pictures
    opacity = pictures[:, 3:] / 2 + 0.5
    return torch.cat([pictures[:, :3] * opacity + (1 - opacity), pictures[:, 3:]], dim=1)


def _straight(pictures: Tensor) -> Tensor:
    """The inverse of `_on_white`."""
    if pictures.shape[1] == 3:
        return pictures
    opacity = (pictures[:, 3:] / 2 + 0.5).clamp(1 / 255, 1)
    return torch.cat([(pictures[:, :3] - (1 - opacity)) / opacity, pictures[:, 3:]], dim=1).clamp(-1, 1)


def _pictures(channels: int) -> Tensor:
    """Pictures that cover the colour cube: [16, channels, 128, 128] in −1..1."""
    generator = torch.Generator().manual_seed(_SEED)
    coarse = torch.rand(_FIT_PICTURES, channels, 4, 4, generator=generator) * 2 - 1
    pictures = F.interpolate(coarse, size=(_FIT_EDGE, _FIT_EDGE), mode="bicubic", align_corners=False).clamp(-1, 1)
    pictures[:, 3:] = 1.0
    pictures[::2, 3:] = -1.0  # every other one on a transparent ground
    if channels == 4:
        pictures[::2, :3] = -1.0
    for picture in pictures:
        for _ in range(6):
            top, left, height, width = torch.randint(8, 80, (4,), generator=generator).tolist()
            picture[:3, top : top + height, left : left + width] = torch.rand(3, 1, 1, generator=generator) * 2 - 1
            picture[3:, top : top + height, left : left + width] = 1.0
    return pictures
