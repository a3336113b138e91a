"""Pictures between the VAE's tensors and bytes, on the device where they are. Knows shapes, not requests."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kleinserve.core import Pixels


def unit(pictures: Tensor) -> Tensor:
    """[B, channels, H, W] in −1..1, nominally -> [B, H, W, channels] in 0..1."""
    return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def quantise(pictures: Tensor, *, is_cut_out: bool) -> Tensor:
    """[B, channels, H, W] in −1..1, nominally -> uint8 [B, H, W, 3], or 4 where alpha is there and wanted.

    Rounded half to even, as the stock image processor does; opaque: composited on white before it. Colour under
    alpha 0 is 0.
    """
    values = unit(pictures)
    if values.shape[-1] == 4 and not is_cut_out:
        values = values[..., :3] * values[..., 3:] + (1 - values[..., 3:])
    levels = (values * 255).round().to(torch.uint8)
    if levels.shape[-1] == 4:
        levels = levels * (levels[..., 3:] > 0)
    return levels.contiguous()


def to_tensor(pixels: Pixels) -> Tensor:
    """8-bit pixels -> float32 [channels, H, W] in −1..1, as the stock image processor normalises."""
    array = np.frombuffer(pixels.data, np.uint8).reshape(pixels.size.height, pixels.size.width, pixels.channels)
    return torch.from_numpy(array.astype(np.float32) / 255.0).permute(2, 0, 1) * 2 - 1


class Fetch:
    """A tensor on its way to the host; the thread that sends it does not wait."""

    def __init__(self, tensor: Tensor):
        self._arrived: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)  # whoever waits sleeps
            self._arrived.record()

    def array(self) -> NDArray[Any]:
        """The values, once they are there. From any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()
