"""Trains transformer and text encoder together by rectified flow on encoded scenes. The VAE is given and frozen."""

import math
from itertools import pairwise

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import nn
from torch.nn import functional
from transformers import Qwen3Model

from training.models import build_text, build_transformer, prompt_embeds
from training.pool import Batch

LAST_SHARES = (0.15, 0.15, 0.25, 0.45)  # of the four official sigmas: the last one decides how sharp a picture is


class Drawer(nn.Module):
    """What is trained: the text layers that are read, and the transformer."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text: Qwen3Model = build_text(vocabulary)
        self.transformer: Flux2Transformer2DModel = build_transformer()
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, batch: Batch, noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """Velocity [B, T, C] of the output's tokens, along the path of the stock pipeline, padding included."""
        text = prompt_embeds(self.text, batch.input_ids, batch.attention_mask)
        text_ids = functional.pad(torch.arange(text.shape[1], device=text.device).unsqueeze(1), (3, 0))
        return self.transformer(
            hidden_states=torch.cat([noisy, batch.references], 1),
            timestep=sigmas,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=text_ids,
            img_ids=batch.image_ids,
            return_dict=False,
        )[0][:, : noisy.shape[1]]


def shifted(sigmas: torch.Tensor, mu: float) -> torch.Tensor:
    """The scheduler's exponential shift: e^mu / (e^mu + 1/sigma - 1)."""
    return math.exp(mu) / (math.exp(mu) + 1 / sigmas - 1)


def official_sigmas(tokens: int, steps: int = 4) -> torch.Tensor:
    """The sigmas that the stock pipeline steps through, the final zero left out."""
    return shifted(torch.linspace(1, 1 / steps, steps), compute_empirical_mu(tokens, steps))


def draw_sigmas(tokens: int, count: int) -> torch.Tensor:
    """Three fifths at the four official steps of this size, the rest over the whole path."""
    official = official_sigmas(tokens)[torch.multinomial(torch.tensor(LAST_SHARES), count, replacement=True)]
    official = (official + 0.02 * torch.randn(count) * (official < 0.99)).clamp(max=1.0)
    anywhere = shifted(torch.rand(count).clamp(min=1e-3), 1.8)
    return torch.where(torch.rand(count) < 0.6, official, anywhere)


def flow_loss(drawer: Drawer, batch: Batch) -> torch.Tensor:
    """Mean squared error of the velocity noise - picture."""
    sigmas = draw_sigmas(batch.latents.shape[1], len(batch.latents)).to(batch.latents.device)
    noise = torch.randn_like(batch.latents)
    share = sigmas.view(-1, 1, 1)
    noisy = (1 - share) * batch.latents + share * noise
    with torch.autocast(batch.latents.device.type, torch.bfloat16):
        velocity = drawer(batch, noisy, sigmas)
    return functional.mse_loss(velocity.float(), noise - batch.latents)


@torch.no_grad()
def sample(drawer: Drawer, batch: Batch, steps: int, noise: torch.Tensor) -> torch.Tensor:
    """Latents [B, T, C] by the official schedule, as the stock pipeline steps."""
    sigmas = [*official_sigmas(noise.shape[1], steps).tolist(), 0.0]
    latents = noise
    for now, then in pairwise(sigmas):
        velocity = drawer(batch, latents, torch.full((len(latents),), now, device=latents.device))
        latents = latents + (then - now) * velocity.float()
    return latents
