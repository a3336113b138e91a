"""torch.compile for what repeats: the transformer's blocks, and on CUDA the VAE's norms. Knows modules, not images."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

# One graph serves all sizes. Of a block there are two, for one noise level and for several; of a norm two for each
# number of channels, for one picture and for several; of all these as many as there are numbers of threads (cores.py).
_OPTIONS = {"dynamic": True, "fullgraph": True}
_GRAPHS_MAX = 64  # of one function


def is_wanted(setting: str, device: torch.device) -> bool:
    """Whether `setting` (auto, on, off) means to compile here; auto: on CUDA."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")


def check() -> None:
    """Raise RuntimeError where there is no C++ compiler, which every kind of compiling needs."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"there is no C++ compiler {compiler}")


def undo(*networks: nn.Module) -> None:
    """Run eagerly from now on what `compile_blocks` and `compile_norms` had compiled."""
    for network in networks:
        for module in network.modules():
            module._compiled_call_impl = None
    torch.compiler.set_stance("default")


def compile_blocks(transformer: Flux2Transformer2DModel) -> None:
    """Have the blocks compiled when they first run, for any shape."""
    transformer.compile_repeated_blocks(**_OPTIONS)


def compile_norms(vae: AutoencoderKLFlux2) -> None:
    """Have the norms compiled when they first run, for any shape: slower than eager on a CPU, see docs/PERF.md."""
    fuse(vae)
    for module in vae.modules():
        if isinstance(module, NormAct):
            module.compile(**_OPTIONS)


@contextmanager
def compiling() -> Iterator[None]:
    """Compile what this thread runs in the block. Afterwards nothing is compiled: what has no graph runs eagerly."""
    torch.compiler.set_stance("default")
    with torch._dynamo.config.patch(recompile_limit=_GRAPHS_MAX):  # torch keeps these settings for each thread
        yield
    torch.compiler.set_stance("eager_on_recompile")


class NormAct(nn.Module):
    """A group norm and the SiLU after it; compiled, one kernel: alone each turns the picture to NCHW and back."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, C, H, W], channels last, in and out."""
        return F.silu(self.norm(hidden_states)).contiguous(memory_format=torch.channels_last)


def fuse(vae: AutoencoderKLFlux2) -> None:
    """Put a NormAct, in place, wherever a group norm comes before a SiLU."""
    for block in [module for module in vae.modules() if isinstance(module, ResnetBlock2D)]:
        if isinstance(block.norm1, nn.GroupNorm) and isinstance(block.nonlinearity, nn.SiLU):
            block.norm1, block.norm2, block.nonlinearity = NormAct(block.norm1), NormAct(block.norm2), nn.Identity()
    for coder in (vae.encoder, vae.decoder):
        if isinstance(coder.conv_norm_out, nn.GroupNorm) and isinstance(coder.conv_act, nn.SiLU):
            coder.conv_norm_out, coder.conv_act = NormAct(coder.conv_norm_out), nn.Identity()
