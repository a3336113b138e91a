"""8-bit floating point for the transformer's linear layers, by torchao. Knows layers, not images."""

import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from kleinserve.errors import UnusableCheckpoint

_CAPABILITY_MIN = (8, 9)  # Ada; Hopper is 9.0
_EDGE_MULTIPLE = 16  # of both sides of a weight, by torch._scaled_mm


def check(quantize: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UnusableCheckpoint, one line, where `quantize` (none, fp8) cannot be honoured."""
    if quantize == "none":
        return
    if device.type != "cuda":
        raise UnusableCheckpoint(f"quantize fp8 needs a CUDA device; the device is {device}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY_MIN:
        have, need = (f"{major}.{minor}" for major, minor in (capability, _CAPABILITY_MIN))
        raise UnusableCheckpoint(f"quantize fp8 needs compute capability {need}; {device} has {have}")
    if dtype != torch.bfloat16:
        raise UnusableCheckpoint(f"quantize fp8 needs dtype bfloat16; it is {str(dtype).removeprefix('torch.')}")
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise UnusableCheckpoint("quantize fp8 needs the package torchao: pip install 'klein-serve[fp8]'") from error


def quantize(transformer: Flux2Transformer2DModel) -> None:
    """Weights in e4m3 with a scale a row, activations likewise at each call, in place, in the blocks alone."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    quantize_(transformer, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), filter_fn=is_quantized)


def is_quantized(module: nn.Module, name: str) -> bool:
    """Whether a layer of the transformer is one that `quantize` changes."""
    is_linear = isinstance(module, nn.Linear) and not any(edge % _EDGE_MULTIPLE for edge in module.weight.shape)
    return is_linear and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
