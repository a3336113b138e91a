"""Where the weights go: by free memory, by what is asked, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from kleinserve.config import Config
from kleinserve.core import Background, Operation, Output, Request, Size
from kleinserve.engine import checkpoint, memory
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine
from kleinserve.errors import UnusableCheckpoint

from tests.engine.checkpoints import klein
from tests.engine.test_parity import reference

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
KLEIN = checkpoint.find("geometry:klein-4b")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine with one CUDA device; set the GiB free on it and on the CPU."""
    amounts = {"cuda": 0.0, "cpu": 0.0}

    class Memory:
        @property
        def available(self) -> int:
            return int(amounts["cpu"] * memory.GIB)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(amounts["cuda"] * memory.GIB), 80 * memory.GIB))
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    return amounts


@pytest.mark.parametrize(
    ("device", "gib", "dtype", "mode", "chosen"),
    [
        ("auto", 24, "auto", "auto", (CUDA, torch.bfloat16, False)),
        ("cuda", 14.7, "auto", "auto", (CUDA, torch.bfloat16, False)),
        ("cuda", 14.6, "auto", "auto", (CUDA, torch.bfloat16, True)),
        ("cuda", 13.6, "auto", "auto", (CUDA, torch.bfloat16, True)),
        ("cuda:0", 24, "bfloat16", "offload", (torch.device("cuda:0"), torch.bfloat16, True)),
        ("cuda", 80, "float32", "auto", (CUDA, torch.float32, False)),
        ("cpu", 28, "auto", "auto", (CPU, torch.float32, False)),
        ("cpu", 27, "auto", "auto", (CPU, torch.bfloat16, False)),
        ("cpu", 28, "bfloat16", "resident", (CPU, torch.bfloat16, False)),
    ],
)
def test_klein_4b_goes_where_it_fits(
    device: str, gib: float, dtype: str, mode: str, chosen: tuple[object, ...], free: dict[str, float]
) -> None:
    """klein-4b in bfloat16 takes 14.7 GiB resident and 13.5 offloaded; a CPU has float32 where it has room for it."""
    free["cpu" if device == "cpu" else "cuda"] = gib
    made = memory.plan(KLEIN, device, dtype, mode)
    assert (made.device, made.dtype, made.is_offloaded) == chosen
    assert f"{gib:.1f} GiB free on {made.device}" in made.reason


@pytest.mark.parametrize(
    ("device", "gib", "dtype", "mode", "said"),
    [
        (
            "cuda", 12, "auto", "auto",
            "geometry:klein-4b does not fit: resident in bfloat16 needs 14.7 GiB, offload in bfloat16 needs 13.5 GiB; "
            "12.0 GiB free on cuda",
        ),
        ("cuda", 14, "auto", "resident", "resident in bfloat16 needs 14.7 GiB; 14.0 GiB free on cuda"),
        ("cuda", 24, "float32", "auto", "resident in float32 needs 27.9 GiB, offload in float32 needs 26.5 GiB"),
        ("cpu", 8, "auto", "auto", "resident in float32 needs 27.9 GiB, resident in bfloat16 needs 14.7 GiB"),
        ("cpu", 64, "auto", "offload", "memory offload needs an accelerator"),
        ("cuda:1", 64, "auto", "auto", "device 'cuda:1' is not there: 1 CUDA devices"),
        ("tpu", 64, "auto", "auto", "device 'tpu' is not one of auto, cpu, cuda, cuda:N"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    device: str, gib: float, dtype: str, mode: str, said: str, free: dict[str, float]
) -> None:
    """Where nothing that was allowed fits, one line has every amount; what was asked is never replaced."""
    free |= {"cpu": gib, "cuda": gib}
    with pytest.raises(UnusableCheckpoint) as refused:
        memory.plan(KLEIN, device, dtype, mode)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


class Traveller(torch.nn.Linear):
    """A module that notes where it is sent instead of going: there is no second device on a CPU."""

    def __init__(self, capacity: bool = True):
        super().__init__(1, 1)
        self.place, self.capacity = "cpu", capacity

    def to(self, device: torch.device | str) -> "Traveller":  # type: ignore[override]
        self.place = torch.device(device).type
        if self.place != "cpu" and not self.capacity:
            raise torch.OutOfMemoryError("half-way")
        return self


def test_lent_module_comes_back() -> None:
    """An offloaded module is on the device inside the block and back after it; a resident one never moves."""
    module = Traveller()
    with memory.lent(module, CUDA, is_offloaded=True):
        assert module.place == "cuda"
    assert module.place == "cpu"
    with memory.lent(module, CUDA, is_offloaded=False):
        assert module.place == "cpu"


def test_lent_module_comes_back_after_a_failure() -> None:
    """It is given back when the work fails, and when the move itself runs out of memory."""
    module = Traveller()
    with pytest.raises(ValueError, match="failed"), memory.lent(module, CUDA, is_offloaded=True):
        raise ValueError("failed")
    assert module.place == "cpu"
    module = Traveller(capacity=False)
    with pytest.raises(torch.OutOfMemoryError), memory.lent(module, CUDA, is_offloaded=True):
        pass
    assert module.place == "cpu"


def test_offloaded_engine_borrows_what_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text encoder and VAE run only while lent, one at a time, and the pictures are those of a resident engine.

    An edit, a cut-out in two passes and a plain picture go through every stage. The device is the CPU itself.
    """
    directory = klein(tmp_path)
    resident = Engine(checkpoint.find(str(directory)), Config(threads=1))
    plan = memory.Plan(CPU, torch.float32, True, "as asked")
    monkeypatch.setattr(memory, "plan", lambda *_: plan)
    present: list[torch.nn.Module] = []
    lent = memory.lent

    @contextmanager
    def noted(module: torch.nn.Module, device: torch.device, is_offloaded: bool) -> Iterator[None]:
        with lent(module, device, is_offloaded):
            present.extend([module] * is_offloaded)
            assert len(present) <= 1
            yield
        present[:] = []

    monkeypatch.setattr(memory, "lent", noted)
    offloaded = Engine(checkpoint.find(str(directory)), Config(threads=1))
    used: list[torch.nn.Module] = []
    for module in (offloaded._text.module, offloaded._vae.module):
        for part in module.children():
            part.register_forward_pre_hook(lambda *_, whole=module: used.append(whole) or _assert_in(whole, present))
    for ours, theirs in zip(pictures(offloaded), pictures(resident), strict=True):
        assert np.array_equal(ours, theirs)
    assert {id(module) for module in used} == {id(offloaded._text.module), id(offloaded._vae.module)}


def _assert_in(module: torch.nn.Module, present: list[torch.nn.Module]) -> None:
    assert any(module is other for other in present)


def pictures(engine: Engine) -> list[Picture]:
    """A plain picture, an edit and a cut-out's second pass."""
    cut_out = Output(background=Background.TRANSPARENT)
    requests = [
        Request("1", Operation.GENERATE, "a red circle", (), Size(64, 64), 1, 2, 1.0),
        Request("2", Operation.EDIT, "make it blue", (reference(64, 64, 2, 3),), Size(64, 64), 2, 2, 1.0),
        Request("3", Operation.GENERATE, "a star", (), Size(64, 64), 3, 2, 1.0, output=cut_out),
    ]
    drawings = [engine.drawing(request) for request in requests]
    engine.begin(drawings)
    for _ in range(2):
        engine.step(drawings)
    decoded = engine.decode(drawings)
    engine.begin_second(drawings[2], decoded[2])
    while not drawings[2].is_denoised:
        engine.step(drawings[2:])
    return [*decoded[:2], *engine.decode(drawings[2:])]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),  # of the runtime, past torch's allocator
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_did_not_suffice_is_not_fatal(error: Exception) -> None:
    """Whoever says that memory is exhausted, the server lives on."""
    assert memory.is_exhausted(error)
    assert not memory.is_fatal(error)


def test_a_lost_device_is_fatal() -> None:
    """An illegal access leaves nothing to go on with."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert memory.is_fatal(error)
    assert not memory.is_exhausted(error)
