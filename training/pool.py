"""Encoded examples of one size and one number of references, drawn afresh and thrown away after a few uses."""

from dataclasses import dataclass
from random import Random

import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen2TokenizerFast

from training import tokenizer as words
from training.mixture import example
from training.scene import Scene, render
from training.vae import mean_latents, patchified


def encode(vae: AutoencoderKLFlux2, scenes: list[Scene]) -> torch.Tensor:
    """Normalised latent tokens [B, T, 4C] of scenes of one size, as the stock pipeline encodes a reference."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    parts = []
    with torch.no_grad():
        for start in range(0, len(scenes), 64):
            rgba = render(scenes[start : start + 64]).to(vae.device, memory_format=torch.channels_last)
            with torch.autocast(vae.device.type, torch.bfloat16):
                latents = mean_latents(vae, rgba)
            parts.append(((patchified(latents.float()) - mean) / std).flatten(2).mT)
    return torch.cat(parts)


def positions(size_px: tuple[int, int], time: int) -> torch.Tensor:
    """Position ids (T, H, W, L) of one picture's tokens: time 0 for the output, 10, 20, ... for references."""
    columns, rows = size_px[0] // 16, size_px[1] // 16
    return torch.cartesian_prod(torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.arange(1))


@dataclass
class Batch:
    """One step's inputs; the first latents.shape[1] image positions are the output's."""

    latents: torch.Tensor
    references: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_ids: torch.Tensor


class Pool:
    """count examples of one size and reference count, with the number of batches that may still be taken."""

    def __init__(
        self,
        random: Random,
        vae: AutoencoderKLFlux2,
        tokenizer: Qwen2TokenizerFast,
        size_px: tuple[int, int],
        references: int,
        count: int,
        uses: int,
        kind: str | None = None,
    ) -> None:
        examples = [example(random, references, size_px, kind) for _ in range(count)]
        self.size_px, self.reference_count, self.uses = size_px, references, uses
        self.latents = encode(vae, [e.target for e in examples]).half()
        slots = [encode(vae, [e.references[i] for e in examples]).half() for i in range(references)]
        self.references = torch.cat(slots, 1) if slots else self.latents[:, :0]
        tokens = words.encode(tokenizer, [e.prompt for e in examples])
        self.input_ids, self.attention_mask = tokens["input_ids"], tokens["attention_mask"]
        self.image_ids = torch.cat([positions(size_px, 10 * i) for i in range(references + 1)])

    def batch(self, count: int, device: torch.device) -> Batch:
        """count examples at random."""
        self.uses -= 1
        pick = torch.randint(len(self.latents), (count,))
        return Batch(
            self.latents[pick.to(self.latents.device)].float(),
            self.references[pick.to(self.latents.device)].float(),
            self.input_ids[pick].to(device),
            self.attention_mask[pick].to(device),
            self.image_ids.to(device),
        )
