"""8-bit linear layers: torchao's own arithmetic on the CPU, past its check of the hardware; CUDA's is in tests/gpu."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from kleinserve.core import Operation, Size
from kleinserve.engine import quantized
from kleinserve.engine.engine import Engine
from kleinserve.errors import UnusableCheckpoint
from numpy.typing import NDArray
from torch import nn

from tests.engine.drawing import ask, draw, loaded

CUDA = torch.device("cuda")


def pictures(engine: Engine) -> list[NDArray[Any]]:
    prompts = ("a red circle", "a blue star on a green background", "a large pink heart")
    asked = [ask(p, Operation.GENERATE, p, (), Size(96, 64), i, 4, 1.0) for i, p in enumerate(prompts)]
    return draw(engine, *asked)


def test_quantised_blocks_draw_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer of the blocks is 8 bits wide, nothing else is, and a picture moves by a level or so."""
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
    engine = loaded(dtype="bfloat16")
    transformer, exact = engine._denoiser.transformer, pictures(engine)
    quantized.quantize(transformer)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            is_8_bit = getattr(module.weight, "qdata", module.weight).dtype == torch.float8_e4m3fn
            assert is_8_bit == ("transformer_blocks." in name), name
    for rough, fine in zip(pictures(engine), exact, strict=True):
        assert 0 < np.abs(rough.astype(int) - fine).mean() < 2


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "refusal"),
    [
        ("cpu", (9, 0), torch.bfloat16, "quantize fp8 needs a CUDA device; the device is cpu"),
        ("cuda", (8, 0), torch.bfloat16, "quantize fp8 needs compute capability 8.9; cuda has 8.0"),
        ("cuda", (9, 0), torch.float32, "quantize fp8 needs dtype bfloat16; it is float32"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], dtype: torch.dtype, refusal: str
) -> None:
    """The line says what is needed and what is there; `none` needs nothing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(UnusableCheckpoint) as refused:
        quantized.check("fp8", torch.device(device), dtype)
    assert str(refused.value) == refusal
    quantized.check("none", torch.device(device), dtype)


def test_without_torchao_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hopper in bfloat16 will do; without the package the line says what to install."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    quantized.check("fp8", CUDA, torch.bfloat16)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UnusableCheckpoint, match="needs the package torchao"):
        quantized.check("fp8", CUDA, torch.bfloat16)
