"""Draws many examples at once with a stock pipeline's modules, step for step as the pipeline itself does."""

from itertools import pairwise

import torch
from diffusers import Flux2KleinPipeline

from training.flow import official_sigmas
from training.models import OUT_LAYERS
from training.pool import encode, positions
from training.requests import Example
from training.scene import Scene
from training.vae import decode

BATCH_TOKENS = 6000


def seeded_noise(seeds: list[int], size_px: tuple[int, int], channels: int) -> torch.Tensor:
    """Tokens [B, T, C] from one CPU generator per seed, in the pipeline's latent shape."""
    shape = (1, channels, size_px[1] // 16, size_px[0] // 16)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)).flatten(2).mT for s in seeds])


def unpacked(tokens: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
    """Latents [B, C, H/8, W/8] of tokens [B, T, 4C], patches laid out again."""
    columns, rows = size_px[0] // 16, size_px[1] // 16
    parts = tokens.mT.reshape(len(tokens), -1, 2, 2, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(len(tokens), -1, rows * 2, columns * 2)


@torch.no_grad()
def draw_batch(pipe: Flux2KleinPipeline, examples: list[Example], seeds: list[int], steps: int) -> torch.Tensor:
    """Straight-alpha RGBA [B, 4, H, W]; the examples share one size and one number of references."""
    target: Scene = examples[0].target
    size_px = (target.width_px, target.height_px)
    count = len(examples[0].references)
    embeds, text_ids = pipe.encode_prompt(
        [e.prompt for e in examples],
        max_sequence_length=pipe.tokenizer.model_max_length,
        text_encoder_out_layers=OUT_LAYERS,
    )
    references = [encode(pipe.vae, [e.references[i] for e in examples]) for i in range(count)]
    image_ids = torch.cat([positions(size_px, 10 * i) for i in range(count + 1)])
    latents = seeded_noise(seeds, size_px, pipe.transformer.config.in_channels)
    sigmas = [*official_sigmas(latents.shape[1], steps).tolist(), 0.0]
    for now, then in pairwise(sigmas):
        velocity = pipe.transformer(
            hidden_states=torch.cat([latents, *references], 1),
            timestep=torch.full((len(latents),), now),
            encoder_hidden_states=embeds,
            txt_ids=text_ids[0],
            img_ids=image_ids,
            return_dict=False,
        )[0][:, : latents.shape[1]]
        latents = latents + (then - now) * velocity
    bn = pipe.vae.bn
    tokens = latents * (bn.running_var + pipe.vae.config.batch_norm_eps).sqrt() + bn.running_mean
    return decode(pipe.vae, unpacked(tokens, size_px)).clamp(0, 1)


def draw(pipe: Flux2KleinPipeline, examples: list[Example], seeds: list[int], steps: int = 4) -> list[torch.Tensor]:
    """One picture per example, in batches that fit in memory."""
    tokens = examples[0].target.width_px * examples[0].target.height_px // 256 * (1 + len(examples[0].references)) + 40
    size = max(1, BATCH_TOKENS // tokens)
    pictures: list[torch.Tensor] = []
    for start in range(0, len(examples), size):
        part = slice(start, start + size)
        pictures += draw_batch(pipe, examples[part], seeds[part], steps)
    return pictures
