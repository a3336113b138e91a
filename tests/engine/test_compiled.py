"""What is compiled, and what is refused, apart from whole pictures: those are in test_parity.py."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread, get_ident

import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from diffusers import AutoencoderKLFlux2
from kleinserve.core import Operation, Size
from kleinserve.engine import compiled, memory
from kleinserve.engine.checkpoint import MINI
from kleinserve.engine.render import Render
from kleinserve.errors import AcceleratorOutOfMemory, UnusableCheckpoint
from structlog.testing import capture_logs
from torch import nn
from torch._inductor.utils import fresh_cache

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


def test_sizes_are_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calling thread draws and decodes an edit of each of `warm_sizes`; one that finds no memory stops nothing."""
    seen: list[tuple[str, Size, int]] = []
    engine = loaded(warm_sizes="64x96,128x64,80x80")
    step, decode = engine.step, engine.decode

    def stepped(renders: Sequence[Render]) -> None:
        step(renders)
        seen.append(("step", renders[0].request.size, get_ident()))

    def decoded(renders: Sequence[Render]) -> Iterator[None]:
        if renders[0].request.size == Size(128, 64):
            raise AcceleratorOutOfMemory("no room")
        yield from decode(renders)
        seen.append(("decode", renders[0].request.size, get_ident()))

    monkeypatch.setattr(engine, "step", stepped)
    monkeypatch.setattr(engine, "decode", decoded)
    other = Thread(target=engine.warm)
    other.start()
    other.join()
    engine.warm()
    once = [("step", Size(64, 96)), ("decode", Size(64, 96)), ("step", Size(128, 64))]
    once += [("step", Size(80, 80)), ("decode", Size(80, 80))]
    assert seen == [(*what, thread) for thread in (other.ident, get_ident()) for what in once]


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [("auto", CPU, False), ("auto", CUDA, True), ("on", CPU, True), ("off", CUDA, False)],
)
def test_auto_compiles_on_cuda(setting: str, device: torch.device, expected: bool) -> None:
    """`auto` is on for CUDA; what is asked for is done."""
    assert compiled.is_wanted(setting, device) == expected


def broken_compiler(directory: Path) -> str:
    """A compiler that finds no header."""
    script = directory / "g++"
    script.write_text("#!/bin/sh\necho fatal error: Python.h: No such file or directory >&2\nexit 1\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.usefixtures("may_compile")
@pytest.mark.parametrize("kind", ["missing", "failing"])
def test_what_cannot_be_compiled_is_served_eagerly(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler, or one that fails: `auto` goes on, draws what an eager engine draws and says why; `on` is refused.

    No cache of an earlier run helps out.
    """
    compiler = "no-such-compiler" if kind == "missing" else broken_compiler(tmp_path)
    monkeypatch.setenv("CXX", compiler)
    asked = ask("1", Operation.GENERATE, "a red circle", (), Size(64, 64), 1, 1, 1.0)
    eager = loaded()
    torch._dynamo.reset()
    with fresh_cache(), torch._inductor.config.patch("cpp.cxx", (compiler,)):
        with pytest.raises(UnusableCheckpoint, match=r"^compile on: ") as refused:
            loaded(compile="on").warm()
        assert "\n" not in str(refused.value)
        monkeypatch.setattr(compiled, "is_wanted", lambda setting, device: True)
        engine = loaded(compile="auto")
        with capture_logs() as logs:
            engine.warm()
            assert np.array_equal(draw(engine, asked)[0], draw(eager, asked)[0])
    assert engine.compile_state.startswith("failed: ")
    assert [line["event"] for line in logs] == ["not compiled, serving eagerly"] * (kind == "failing")
    assert eager.compile_state == "eager"
    assert "eager" in engine.identity


@pytest.mark.usefixtures("may_compile")
def test_lent_weights_compile_nothing_again() -> None:
    """A compiled norm that is offloaded runs with each copy of its weights by the one graph."""
    norm = compiled.NormAct(nn.GroupNorm(2, 8)).requires_grad_(False)
    lend = memory.lender(norm, CPU, is_offloaded=True)
    norm.compile(dynamic=True, fullgraph=True)
    with torch.inference_mode():
        with lend():
            norm(torch.zeros(1, 8, 12, 20))
        with torch.compiler.set_stance("fail_on_recompile"), lend():
            norm(torch.zeros(1, 8, 28, 36))
