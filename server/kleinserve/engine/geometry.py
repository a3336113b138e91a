"""Real shapes with random weights: for capacity planning and speed where the weights are not at hand."""

from pathlib import Path

import torch
from accelerate.utils import set_module_tensor_to_device

KLEIN_4B = Path(__file__).parent / "klein-4b"  # the configs alone, as published; base and distilled have the same
KLEIN_9B = Path(__file__).parent / "klein-9b"
_SEED = 0
_POOL_ELEMENTS = 1 << 20  # random values are drawn once and repeated: filling 7 billion takes seconds, not minutes


def filled(networks: dict[str, torch.nn.Module], dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """The networks with random weights of variance 1 / fan-in, norm weights 1 and biases 0, in `dtype` on the CPU."""
    pool = torch.randn(_POOL_ELEMENTS, generator=torch.Generator().manual_seed(_SEED))
    for network in networks.values():
        for name, parameter in list(network.named_parameters()):
            value = _value(name, parameter.shape, pool, dtype)
            set_module_tensor_to_device(network, name, "cpu", value=value, dtype=dtype)
    return networks


def _value(name: str, shape: torch.Size, pool: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    count, fan_in = shape.numel(), shape[1:].numel()
    scaled = (pool / fan_in**0.5).to(dtype)
    return scaled.repeat(-(-count // _POOL_ELEMENTS))[:count].reshape(shape)
