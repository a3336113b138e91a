"""8-bit linear layers: torchao's own arithmetic on the CPU, past its check of the hardware; CUDA's is in tests/gpu."""

import sys

import numpy as np
import pytest
import torch
from kleinserve.config import Config
from kleinserve.core import Operation, Request, Size
from kleinserve.engine import checkpoint, quantized
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine
from kleinserve.errors import UnusableCheckpoint
from torch import nn

from tests.engine.test_parity import draw

CUDA = torch.device("cuda")


def pictures(engine: Engine) -> list[Picture]:
    prompts = ("a red circle", "a blue star on a green background", "a large pink heart")
    asked = [Request(p, Operation.GENERATE, p, (), Size(96, 64), i, 4, 1.0) for i, p in enumerate(prompts)]
    return draw(engine, *asked)


def test_quantised_blocks_draw_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer of the blocks is 8 bits wide, nothing else is, and a picture moves by a level or so."""
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
    engine = Engine(checkpoint.find("mini"), Config(device="cpu", dtype="bfloat16", threads=1))
    transformer, exact = engine._denoiser.transformer, pictures(engine)
    quantized.quantize(transformer)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            is_8_bit = getattr(module.weight, "qdata", module.weight).dtype == torch.float8_e4m3fn
            assert is_8_bit == ("transformer_blocks." in name), name
    for rough, fine in zip(pictures(engine), exact, strict=True):
        assert 0 < np.abs(rough - fine).mean() < 2 / 255


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
