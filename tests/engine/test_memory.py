"""Where the weights go: by free memory, by what is asked, and back."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import psutil
import pytest
import torch
from kleinserve.core import Background, Operation, Output, Request, Size
from kleinserve.engine import checkpoint, memory
from kleinserve.engine.engine import Engine
from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory, UnusableCheckpoint

from tests.engine.checkpoints import klein
from tests.engine.drawing import ask, begin, denoise, draw_whole, finish, loaded, reference

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


class Narrow(torch.nn.Parameter):
    """A weight that finds no room on the device."""

    def to(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_lent_module_keeps_its_host_weights() -> None:
    """Inside the block an offloaded module has copies on the device; after it the very tensors it had before."""
    module, meta = torch.nn.BatchNorm2d(2), torch.device("meta")
    before = dict(module.state_dict(keep_vars=True))
    lend = memory.lender(module, meta, is_offloaded=True)
    for _ in range(2):
        with lend():
            assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
        assert all(tensor is before[name] for name, tensor in module.state_dict(keep_vars=True).items())
    memory.lender(module, meta, is_offloaded=False)
    assert module.weight.device.type == "meta"


@pytest.mark.parametrize("is_roomy", [True, False])
def test_a_lent_module_comes_back_after_a_failure(is_roomy: bool) -> None:
    """It is given back when the work fails, and when the move itself runs out of memory half-way."""
    module = torch.nn.Linear(2, 2)
    if not is_roomy:
        module.bias = Narrow(module.bias.data)
    before = dict(module.state_dict(keep_vars=True))
    lend = memory.lender(module, torch.device("meta"), is_offloaded=True)
    with pytest.raises(ValueError if is_roomy else torch.OutOfMemoryError), lend():
        raise ValueError("failed")
    assert all(tensor is before[name] for name, tensor in module.state_dict(keep_vars=True).items())


def test_offloaded_engine_borrows_what_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text encoder and VAE run only while lent, one at a time, and the pictures are those of a resident engine.

    An edit, a cut-out in two passes and a plain picture go through every stage, each in one piece. The device is the
    CPU itself.
    """
    directory = klein(tmp_path)
    resident = loaded(directory)
    plan = memory.Plan(CPU, torch.float32, True, "as asked")
    monkeypatch.setattr(memory, "plan", lambda *_: plan)
    present: list[torch.nn.Module] = []
    lender = memory.lender

    def noting(module: torch.nn.Module, device: torch.device, is_offloaded: bool) -> memory.Lend:
        lend = lender(module, device, is_offloaded)

        @contextmanager
        def noted() -> Iterator[None]:
            with lend():
                present.append(module)
                assert len(present) <= 1
                yield
            present.clear()

        return noted

    monkeypatch.setattr(memory, "lender", noting)
    offloaded = loaded(directory)
    used: list[torch.nn.Module] = []
    for module in (offloaded._conditioning.text.module, offloaded._vae.module):
        for part in module.modules():
            part.register_forward_pre_hook(lambda *_, whole=module: used.append(whole) or _assert_in(whole, present))
    assert draw_whole(offloaded, *asked()) == draw_whole(resident, *asked())
    assert {id(module) for module in used} == {id(offloaded._conditioning.text.module), id(offloaded._vae.module)}
    [plain, _, _] = begin(offloaded, asked())
    denoise(offloaded, [plain])
    assert finish(offloaded.decode([plain])) == 0


def _assert_in(module: torch.nn.Module, present: list[torch.nn.Module]) -> None:
    assert any(module is other for other in present)


def asked() -> list[Request]:
    """A plain picture, an edit and a cut-out of two passes."""
    cut_out = Output(background=Background.TRANSPARENT)
    return [
        ask("1", Operation.GENERATE, "a red circle", (), Size(64, 64), 1, 2, 1.0),
        ask("2", Operation.EDIT, "make it blue", (reference(64, 64, 2, 3),), Size(64, 64), 2, 2, 1.0),
        ask("3", Operation.GENERATE, "a star", (), Size(64, 64), 3, 2, 1.0, output=cut_out),
    ]


EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),  # of the runtime, past torch's allocator
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    Exception(
        "out of resource: shared memory, Required: 237568, Hardware limit: 232448. Reducing block sizes may help."
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]
FAILURES = [
    *((error, AcceleratorOutOfMemory) for error in EXHAUSTED),
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), AcceleratorLost),
    (ValueError("a defect"), ValueError),
]
STAGES = {
    "text": lambda engine, render: finish(engine.text([render])),
    "begin": lambda engine, render: finish(engine.begin(render)),
    "step": lambda engine, render: engine.step([render]),
    "decode": lambda engine, render: finish(engine.decode([render])),
}
BROKEN = {
    "text": ("_conditioning.text.module", "forward"),
    "begin": ("_vae.module.encoder.conv_act", "forward"),
    "step": ("_denoiser", "_moved"),
    "decode": ("_vae.module.decoder.conv_act", "forward"),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return loaded()


@pytest.mark.parametrize(("error", "raised"), FAILURES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_has_one_name_and_leaves_no_trace(
    stage: str, error: Exception, raised: type[Exception], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory's shortage by all its names, and a lost device, are the engine's two errors at every stage.

    The render is as it was, what the failed work had allocated is free, and the same call made again succeeds.
    """
    owner, broken = BROKEN[stage]
    source = replace(reference(64, 64, 1, 4), digest=b"")
    render = engine.render(ask("1", Operation.EDIT, f"{stage} {error}", (source,), Size(64, 64), 1, 1, 1.0))
    for name, work in STAGES.items():
        if name == stage:
            break
        work(engine, render)
    before, row = dict(vars(render)), dict(vars(render.row)) if render.row else {}
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(*_: object, **__: object) -> None:
        large = torch.empty(1000)
        held.append(weakref.ref(large))
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(attrgetter(owner)(engine), broken, fail)
        with pytest.raises(raised) as failure:
            STAGES[stage](engine, render)
    if raised is not AcceleratorLost:
        assert [tensor() for tensor in held] == [None]  # though the traceback is still here
    assert failure.tb is not None
    assert vars(render) == before
    assert not row or all(now is row[name] for name, now in vars(render.row).items())
    STAGES[stage](engine, render)


def test_what_offload_costs_is_stated() -> None:
    """The operations page's table of offload's costs is klein 4B's bytes over each link's speed."""
    page = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text()
    networks = checkpoint.skeleton(KLEIN)
    sizes = {name: 2 * sum(p.numel() for p in network.parameters()) for name, network in networks.items()}

    def row(each: str, called: str, size: int) -> str:
        milliseconds = [1e3 * size / speed for speed in (25e9, 50e9)]
        cells = " | ".join(f"{ms:.{0 if ms > 10 else 1}f} ms" for ms in milliseconds)
        return f"| {each} | {called}, {size / 1e9:.2f} GB | {cells} |"

    assert row("uncached prompt", "text encoder", sizes["text_encoder"]) in page
    for each in ("uncached reference", "decode"):
        assert row(each, "VAE", sizes["vae"]) in page
    assert f"{(sizes['text_encoder'] + sizes['vae']) / 1e9:.1f} GB pinned" in page
