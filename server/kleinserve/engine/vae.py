"""The VAE: pictures to BN-normalised latent tokens and back, in pieces. Knows shapes, not requests.

A generator here yields between pieces and returns its result (`finished` runs one to its end). Nothing is left open
over a yield: other work may be done there, with the same modules too.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLFlux2
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from torch import Tensor, nn

from kleinserve.core import EDGE_MULTIPLE, Size

_LARGE_NUMBERS = 4 * 1024 * 1024  # in a tensor

T = TypeVar("T")
Pieces = Generator[None, None, T]


def finished(pieces: Pieces[T]) -> T:
    """The result of work in pieces, all of them done now."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


class Vae:
    """The checkpoint's VAE with its latent scaling (`bn`) applied."""

    def __init__(self, vae: AutoencoderKLFlux2, device: torch.device, decode_pixels_max: int):
        self.module = vae
        for act in (module for module in vae.modules() if isinstance(module, nn.SiLU)):
            act.inplace = True  # of a norm's fresh result, always
        self.device, self._dtype = device, vae.dtype  # which diffusers looks up among all parameters
        self.decode_pixels_max = decode_pixels_max
        self.channels: int = vae.config.out_channels
        edge = vae.tile_sample_min_size
        self._edges = int(edge if isinstance(edge, int) else edge[0]), int(vae.tile_latent_min_size)  # pixels, latents
        # Taken once, in float32: the running statistics are the latent scaling.
        self._mean = vae.bn.running_mean.float().view(1, -1, 1, 1).to(device)
        self._std = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1).to(device)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent token: 4 × the VAE's own, from the 2 × 2 patches (128 for klein)."""
        return int(self._mean.numel())

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Pieces[Tensor]:
        """[B, channels, H, W] in −1..1 -> float32 tokens [B, T, C], the posterior's mode.

        Pictures of more than `decode_pixels_max` pixels are encoded in overlapping tiles.

        Source: Flux2KleinPipeline._encode_vae_image. pixel_unshuffle is its _patchify_latents.
        """
        values = pictures.to(self.device, self._dtype)
        if pictures.shape[-1] * pictures.shape[-2] > self.decode_pixels_max:
            moments = yield from self._tiled(values, self._encoded, *self._edges)
        else:
            moments = yield from self._encoded(values)
        latents = F.pixel_unshuffle(moments.chunk(2, dim=1)[0], 2).float()  # the mean is the mode
        return ((latents - self._mean) / self._std).flatten(2).transpose(1, 2).contiguous()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Tensor], size: Size, *, is_tiled: bool = False) -> Pieces[Tensor]:
        """Tokens [T, C] of pictures of one size -> float32 [B, channels, H, W], nominally −1..1.

        A picture of more than `decode_pixels_max` pixels is decoded in overlapping tiles.
        """
        latents = self.latents(torch.stack(list(tokens)), size).to(self._dtype)
        if is_tiled or size.pixels > self.decode_pixels_max:
            picture = yield from self._tiled(latents, self._decoded, *reversed(self._edges))
        else:
            picture = yield from self._decoded(latents)
        return picture.float()

    def latents(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens [B, T, C] -> float32 [B, C/4, H/8, W/8], what the module itself encodes to and decodes."""
        return F.pixel_shuffle(grid(tokens, size) * self._std + self._mean, 2)

    def _encoded(self, pictures: Tensor) -> Pieces[Tensor]:
        """AutoencoderKLFlux2._encode without tiles: the moments of pictures [B, channels, H, W]."""
        encoder, last = self.module.encoder, self.module.quant_conv
        moments = yield from _coded(encoder, [*encoder.down_blocks, encoder.mid_block], pictures)
        return moments if last is None else last(moments)

    def _decoded(self, latents: Tensor) -> Pieces[Tensor]:
        """AutoencoderKLFlux2._decode without tiles."""
        decoder, first = self.module.decoder, self.module.post_quant_conv
        latents = latents if first is None else first(latents)
        return (yield from _coded(decoder, [decoder.mid_block, *decoder.up_blocks], latents))

    def _tiled(self, values: Tensor, code: Callable[[Tensor], Pieces[Tensor]], edge: int, coded: int) -> Pieces[Tensor]:
        """`code` of overlapping tiles of at most `edge`, which come out `coded` wide, blended where they overlap.

        Source: AutoencoderKLFlux2._tiled_encode and tiled_decode, diffusers 0.42.1.
        """
        if max(values.shape[-2:]) <= edge:
            return (yield from code(values))
        module, overlap = self.module, self.module.tile_overlap_factor
        step, blend = int(edge * (1 - overlap)), int(coded * overlap)
        rows: list[list[Tensor]] = []
        for top in range(0, values.shape[2], step):
            rows.append([])
            for left in range(0, values.shape[3], step):
                rows[-1].append((yield from code(values[:, :, top : top + edge, left : left + edge])))
                yield
        for i, row in enumerate(rows):
            for j, tile in enumerate(row):  # in place: a tile is blended with what its neighbours have become
                if i > 0:
                    tile = module.blend_v(rows[i - 1][j], tile, blend)
                if j > 0:
                    module.blend_h(row[j - 1], tile, blend)
        kept = coded - blend
        return torch.cat([torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3) for row in rows], dim=2)


def _coded(coder: Any, blocks: Sequence[nn.Module], values: Tensor) -> Pieces[Tensor]:
    """Encoder.forward and Decoder.forward, diffusers 0.42.1, with a yield after each part of a block."""
    values = coder.conv_in(values)
    yield from _large(values)
    for block in blocks:
        for part in _parts(block):
            values = (yield from _resnet(part, values)) if isinstance(part, ResnetBlock2D) else part(values)
            yield
    values = coder.conv_act(coder.conv_norm_out(values))
    yield from _large(values)
    return coder.conv_out(values)


def _parts(block: Any) -> Iterator[nn.Module]:
    """The modules that a block of the stock coders calls one after another; a block of another kind is one part."""
    if not isinstance(block, (DownEncoderBlock2D, UpDecoderBlock2D)):
        yield block
        return
    yield from block.resnets
    yield from (block.downsamplers if isinstance(block, DownEncoderBlock2D) else block.upsamplers) or ()


def _resnet(block: ResnetBlock2D, values: Tensor) -> Pieces[Tensor]:
    """ResnetBlock2D.forward without a time embedding, diffusers 0.42.1, with yields where the picture is large.

    Equal to the last bit, with two tensors of its size fewer.
    """
    hidden = block.nonlinearity(block.norm1(values))
    yield from _large(hidden)
    hidden = block.conv1(hidden)
    yield from _large(hidden)
    hidden = block.nonlinearity(block.norm2(hidden))
    yield from _large(hidden)
    hidden = block.conv2(hidden)
    yield from _large(hidden)
    hidden += values if block.conv_shortcut is None else block.conv_shortcut(values)
    return hidden if block.output_scale_factor == 1 else hidden / block.output_scale_factor


def _large(values: Tensor) -> Iterator[None]:
    """A yield where as much again takes tenths of a second on a CPU."""
    if values.numel() >= _LARGE_NUMBERS:
        yield


def grid(tokens: Tensor, size: Size) -> Tensor:
    """Tokens [B, T, C] -> [B, C, H/16, W/16]."""
    return tokens.transpose(1, 2).unflatten(2, (size.height // EDGE_MULTIPLE, size.width // EDGE_MULTIPLE))
