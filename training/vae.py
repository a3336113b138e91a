"""Trains the VAE on rendered scenes, then measures the batch norm that scales its latents. Knows no prompts."""

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKLFlux2
from torch.nn import functional

from training.mixture import example
from training.models import LATENT_CHANNELS, POSTERIOR_STD, build_vae
from training.optimiser import Average, Optimiser
from training.scene import Scene, premultiplied, render

RUNS = Path(__file__).parent / "runs"
SIZES = (((64, 64), 16, 10), ((128, 64), 8, 2), ((64, 128), 8, 2), ((128, 128), 4, 3), ((256, 256), 1, 1))


def _recoloured(random: Random, scene: Scene) -> Scene:
    """Any colours, so that a picture from outside survives too."""
    any_rgb = lambda: (random.random(), random.random(), random.random())  # noqa: E731
    things = tuple(replace(t, rgb=any_rgb()) for t in scene.things)
    return replace(scene, things=things, background=scene.background and any_rgb())


def pictures(random: Random, count: int, size_px: tuple[int, int]) -> torch.Tensor:
    """RGBA [B, 4, H, W] in 0..1: targets of every kind, a quarter of them in arbitrary colours."""
    scenes = [example(random, random.choices((0, 1, 2, 4), (6, 2, 1, 1))[0], size_px).target for _ in range(count)]
    return render([_recoloured(random, s) if random.random() < 0.25 else s for s in scenes])


def mean_latents(vae: AutoencoderKLFlux2, rgba: torch.Tensor) -> torch.Tensor:
    return vae.quant_conv(vae.encoder(rgba * 2 - 1))[:, :LATENT_CHANNELS]


def decode(vae: AutoencoderKLFlux2, latents: torch.Tensor) -> torch.Tensor:
    """RGBA in about 0..1, unclamped."""
    return vae.decoder(vae.post_quant_conv(latents)) / 2 + 0.5


def loss(rgba: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Premultiplied colour and alpha, absolute and squared."""
    wanted, got = premultiplied(rgba), torch.cat([drawn[:, :3] * rgba[:, 3:], drawn[:, 3:]], 1)
    return functional.l1_loss(got, wanted) + 4 * functional.mse_loss(got, wanted)


def psnr(vae: AutoencoderKLFlux2, size_px: tuple[int, int] = (128, 128), count: int = 64, seed: int = 999_983) -> float:
    """Decibels of the premultiplied reconstruction on scenes never trained on."""
    rgba = pictures(Random(seed), count, size_px)
    with torch.no_grad():
        drawn = torch.cat([decode(vae, mean_latents(vae, part)) for part in rgba.split(8)]).clamp(0, 1)
    return -10 * math.log10(functional.mse_loss(premultiplied(drawn), premultiplied(rgba)))


def patchified(latents: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = latents.shape
    parts = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(batch, channels * 4, height // 2, width // 2)


def measure_norm(vae: AutoencoderKLFlux2, count: int = 2048, seed: int = 31) -> None:
    """Set the batch norm's statistics from pictures of every kind: they are the scale of the latents."""
    random = Random(seed)
    with torch.no_grad():
        parts = [patchified(mean_latents(vae, pictures(random, 64, (64, 64)))) for _ in range(count // 64)]
    tokens = torch.cat([p.permute(0, 2, 3, 1).flatten(0, 2) for p in parts])
    vae.bn.running_mean.copy_(tokens.mean(0))
    vae.bn.running_var.copy_(tokens.var(0))


def train(
    seconds: float,
    out: Path,
    resume: Path | None = None,
    is_decoder_only: bool = False,
    lr: float = 3e-3,
    seed: int = 0,
) -> None:
    """Train for a time, cooling down over its last third; write the average to out.

    The decoder alone is trained on noisier latents than the encoder gives: a transformer's are never exact.
    """
    torch.manual_seed(seed)
    random = Random(seed)
    vae = build_vae()
    if resume:
        vae.load_state_dict(torch.load(resume, weights_only=True))
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(not is_decoder_only)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae.to(device, memory_format=torch.channels_last)
    optimiser, average = Optimiser(vae, lr, lr / 2, ("conv_in", "conv_out", "quant_conv")), Average(vae, 0.995)
    started, step = time.time(), 0
    while (share := (time.time() - started) / seconds) < 1:
        (size_px, batch, _) = random.choices(SIZES, [w for *_, w in SIZES])[0]
        rgba = pictures(random, batch, size_px).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latents = mean_latents(vae, rgba)
            penalty = 1e-3 * latents.float().square().mean()
            spread = POSTERIOR_STD * (3 * torch.rand(batch, 1, 1, 1, device=device) if is_decoder_only else 1.0)
            drawn = decode(vae, latents + spread * torch.randn_like(latents))
        total = loss(rgba, drawn.float()) + penalty
        total.backward()
        norm = optimiser.step(min(1.0, (step + 1) / 50) * min(1.0, 3 * (1 - share)))
        average.update(vae)
        step += 1
        if step % 100 == 0:
            spent = time.time() - started
            print(f"vae {step} {spent:.0f}s loss {total.item() - penalty.item():.4f} norm {norm:.2f}", flush=True)
        if step % 500 == 0:
            _save(average, out, is_decoder_only)
            print(f"vae {step} psnr {psnr(load_vae(out)):.2f} dB", flush=True)
    _save(average, out, is_decoder_only)
    print(f"vae {step} psnr {psnr(load_vae(out)):.2f} dB", flush=True)


def _save(average: Average, out: Path, is_decoder_only: bool) -> None:
    vae = build_vae()
    vae.load_state_dict(average.shadow)
    if not is_decoder_only:  # a transformer may have been trained on the old statistics
        measure_norm(vae, 2048)
    torch.save(vae.state_dict(), f"{out}.part")
    os.replace(f"{out}.part", out)


def load_vae(path: Path) -> AutoencoderKLFlux2:
    vae = build_vae()
    vae.load_state_dict(torch.load(path, weights_only=True))
    return vae.eval()
