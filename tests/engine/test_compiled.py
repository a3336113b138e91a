"""What is compiled, and what is refused, apart from whole pictures: those are in test_parity.py."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2
from kleinserve.core import Operation, Size
from kleinserve.engine import compiled
from kleinserve.engine.checkpoint import MINI
from kleinserve.errors import UnusableCheckpoint
from torch import nn

from tests.engine.drawing import ask, draw, loaded

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def may_compile() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("may_compile")
def test_compiled_norms_draw_the_same_at_any_size() -> None:
    """Every norm of the VAE is compiled at one odd size, alone and in twos, and no other size compiles again."""
    stock = AutoencoderKLFlux2.from_pretrained(MINI, subfolder="vae").eval().to(memory_format=torch.channels_last)
    fast = copy.deepcopy(stock)
    compiled.compile_norms(fast)
    assert not [module for module in fast.modules() if isinstance(module, nn.SiLU)]  # each is in a NormAct
    with torch.inference_mode():
        for count in (1, 2):
            fast.decode(fast.encode(torch.zeros(count, 4, 96, 64)).latent_dist.mode())
        with torch.compiler.set_stance("fail_on_recompile"):
            for shape in ((1, 4, 64, 64), (3, 4, 128, 96), (1, 4, 64, 256)):
                picture = torch.rand(shape) * 2 - 1
                latents = stock.encode(picture).latent_dist.mode()
                torch.testing.assert_close(fast.encode(picture).latent_dist.mode(), latents, atol=1e-4, rtol=1e-4)
                assert (fast.decode(latents).sample - stock.decode(latents).sample).abs().max() < 0.1 / 127.5


@pytest.mark.usefixtures("may_compile")
def test_nothing_is_compiled_when_the_other_thread_begins_to_compute() -> None:
    """Warmed, an engine of two threads has what it needs with both and, while they are divided, with one."""
    engine = loaded(threads=2, compile="on")
    engine.warm()
    asked = ask("1", Operation.GENERATE, "a red circle", (), Size(64, 64), 1, 1, 1.0)
    longer = replace(asked, options=replace(asked.options, steps=2))
    computes, done = Event(), Event()

    def compute() -> None:
        with engine._cores.share():
            computes.set()
            done.wait()

    with torch.compiler.set_stance("fail_on_recompile"):
        alone = draw(engine, asked, longer)
        other = Thread(target=compute)
        other.start()
        computes.wait()
        beside = draw(engine, asked, longer)
        done.set()
        other.join()
    assert max(np.abs(one.astype(int) - two).max() for one, two in zip(alone, beside, strict=True)) <= 1


@pytest.mark.parametrize(
    ("setting", "device", "compiler", "expected"),
    [
        ("auto", CPU, "sh", False),
        ("auto", CUDA, "sh", True),
        ("auto", CUDA, "no-such-compiler", False),
        ("on", CPU, "sh", True),
        ("off", CUDA, "sh", False),
    ],
)
def test_auto_compiles_on_cuda_where_it_can(
    monkeypatch: pytest.MonkeyPatch, setting: str, device: torch.device, compiler: str, expected: bool
) -> None:
    """`auto` is on for CUDA with a compiler; what is asked for is done."""
    monkeypatch.setenv("CXX", compiler)
    assert compiled.is_compiled(setting, device) == expected


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the setting and what is missing."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UnusableCheckpoint, match="compile on needs a C\\+\\+ compiler, and no-such-compiler is not there"
    ):
        compiled.is_compiled("on", CPU)
