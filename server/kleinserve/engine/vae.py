"""The VAE: pictures to BN-normalised latent tokens and back. Knows shapes, not requests."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from kleinserve.core import EDGE_MULTIPLE, Size


class Vae:
    """The checkpoint's VAE with its latent scaling (`bn`) applied."""

    def __init__(self, vae: AutoencoderKLFlux2, device: torch.device, decode_pixels_max: int):
        self.module = vae
        self.device = device
        self.decode_pixels_max = decode_pixels_max
        self.channels: int = vae.config.out_channels
        # Taken once, in float32: the running statistics are the latent scaling.
        self._mean = vae.bn.running_mean.float().view(1, -1, 1, 1).to(device)
        self._std = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1).to(device)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent token: 4 × the VAE's own, from the 2 × 2 patches (128 for klein)."""
        return int(self._mean.numel())

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """[B, channels, H, W] in −1..1 -> float32 tokens [B, T, C], the posterior's mode.

        Pictures of more than `decode_pixels_max` pixels are encoded in overlapping tiles.

        Source: Flux2KleinPipeline._encode_vae_image. pixel_unshuffle is its _patchify_latents.
        """
        self.module.use_tiling = pictures.shape[-1] * pictures.shape[-2] > self.decode_pixels_max
        posterior = self.module.encode(pictures.to(self.device, self.module.dtype)).latent_dist
        latents = F.pixel_unshuffle(posterior.mode(), 2).float()
        return ((latents - self._mean) / self._std).flatten(2).transpose(1, 2).contiguous()

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Tensor], size: Size, *, tiled: bool = False) -> Tensor:
        """Tokens [T, C] of pictures of one size -> float32 [B, channels, H, W], nominally −1..1.

        A picture of more than `decode_pixels_max` pixels is decoded in overlapping tiles.
        """
        latents = self.latents(torch.stack(list(tokens)), size).to(self.module.dtype)
        self.module.use_tiling = tiled or size.pixels > self.decode_pixels_max
        picture: Tensor = self.module.decode(latents, return_dict=False)[0]
        return picture.float()

    def latents(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens [B, T, C] -> float32 [B, C/4, H/8, W/8], what the module itself encodes to and decodes."""
        return F.pixel_shuffle(grid(tokens, size) * self._std + self._mean, 2)


def grid(tokens: Tensor, size: Size) -> Tensor:
    """Tokens [B, T, C] -> [B, C, H/16, W/16]."""
    return tokens.transpose(1, 2).unflatten(2, (size.height // EDGE_MULTIPLE, size.width // EDGE_MULTIPLE))
