"""What inductor makes of klein 4B's blocks for an H200 where there is no GPU: how many kernels, and guarded by what.

    PYTHONPATH=TRITON python -m tests.fake_cuda.inductor

prints it as JSON. TRITON: a directory with the triton package, whose source code is generated and never compiled. Real
tensors on the CPU pass for CUDA ones while the compiler looks at them; what it makes ends at its first allocation.
"""

import ctypes
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sympy
import torch
import torch._dynamo.device_interface as device_interface
import torch._functorch.config
import torch._inductor.config
import torch._subclasses.fake_tensor as fake_tensor
from accelerate import init_empty_weights
from diffusers import Flux2Transformer2DModel
from kleinserve.engine import compiled, geometry
from kleinserve.engine.attention import PackedDoubleProcessor, PackedSingleProcessor, Packing
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
from torch._inductor.graph import GraphLowering
from torch.utils import _triton

from tests.fake_cuda.fakes import guard

TEXTS, IMAGES = [39, 40], [44, 39]  # two requests; no sum is a width of the model
LENGTHS = ((1, 3), (512, 256), (512, 4096), (4096, 4096), (16384, 49152))  # tokens of text and of images
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32, total_memory=140 << 30,
    shared_memory_per_block_optin=232448, L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip


class Driver:
    """What triton asks of a driver."""

    binary_ext = "cubin"
    utils = SimpleNamespace(
        get_device_properties=lambda device: {
            "max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536,
        }
    )  # fmt: skip

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_device(self) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def is_active(self) -> bool:
        return True

    def get_benchmarker(self) -> None:
        return None


@dataclass
class Seen:
    """What was generated for one call: kernels by name; guards that other lengths would not pass."""

    kernels: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


def install(seen: Seen) -> None:
    """Have torch and triton say that there is an H200, and keep what inductor generates."""
    with tempfile.TemporaryDirectory() as directory:
        ctypes.CDLL(str(guard(Path(directory))))
    import triton.runtime.driver as driver  # type: ignore[import-not-found]

    driver.set_active(Driver())
    whole: Any = torch
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": H200,
        "get_device_capability": (9, 0), "is_bf16_supported": True, "synchronize": None, "_lazy_init": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0, "set_rng_state": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(whole.cuda, name, lambda *_, _answer=answer, **__: _answer)
    whole.cuda.get_rng_state = lambda *_: torch.empty(0, dtype=torch.uint8)
    whole._C._cuda_getCurrentRawStream = lambda index: 0
    whole._C._cuda_setDevice = lambda index: None
    whole.accelerator.is_available = lambda: False  # there are no streams
    for name in ("current_device", "device_count", "get_device_properties", "is_bf16_supported", "synchronize"):
        setattr(device_interface.CudaInterface, name, staticmethod(getattr(whole.cuda, name)))
    for name in ("exchange_device", "maybe_exchange_device"):
        setattr(device_interface.CudaInterface, name, staticmethod(lambda index: index))
    device_interface.caching_worker_device_properties["cuda"] = [H200]
    device_interface.caching_worker_current_devices["cuda"] = 0
    whole._inductor.config.compile_threads = 1
    whole._inductor.config.fx_graph_cache = whole._functorch.config.enable_autograd_cache = False
    for passes, name in (
        (fuse_attention, "_sfdp_init"),
        (misc_patterns, "_misc_patterns_init"),
        (pad_mm, "_pad_mm_init"),
    ):
        setattr(passes, name, lambda *_, **__: None)  # they try patterns on the device
    _triton.has_triton.cache_clear()  # somebody asked while there was none
    inductor: Any = AsyncCompile
    inductor.triton = lambda self, name, source, device_str="cuda": seen.kernels.append(name) or (lambda *_, **__: None)
    inductor.wait = lambda self, scope: None
    lower = GraphLowering.compile_to_module

    def lowered(graph: GraphLowering) -> Any:
        try:
            return lower(graph)
        finally:
            seen.refused |= refused(graph._shape_env)

    GraphLowering.compile_to_module = lowered  # type: ignore[method-assign]


def refused(shapes: Any) -> set[str]:
    """The guards that would not hold for requests of other lengths, and for which."""
    hints = dict(shapes.backed_var_to_val)
    totals = {sum(TEXTS): lambda text, image: text, sum(IMAGES): lambda text, image: image}
    totals[sum(TEXTS) + sum(IMAGES)] = lambda text, image: text + image
    found = set()
    for text, image in LENGTHS:
        values = {s: sympy.Integer(totals[int(v)](text, image)) if int(v) in totals else v for s, v in hints.items()}
        for each in shapes.guards:
            if each.expr.xreplace(values) != sympy.true:
                found.add(f"{each.expr} for {text} + {image}")
    return found


def pass_for_cuda(stays: torch.Tensor) -> None:
    """Have the fakes that the compiler makes of real tensors be on CUDA, but for `stays`."""
    make, convert = fake_tensor.FakeTensor.__new__, fake_tensor.FakeTensorConverter.from_real_tensor
    fake: Any = fake_tensor.FakeTensor

    def converted(self: Any, mode: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tensor, fake_tensor.FakeTensor) or tensor is stays:
            return convert(self, mode, tensor, *args, **kwargs)
        cuda = torch.device("cuda", 0)
        fake.__new__ = staticmethod(lambda cls, mode, elem, device, *a, **k: make(cls, mode, elem, cuda, *a, **k))
        try:
            return convert(self, mode, tensor, *args, **kwargs)
        finally:
            fake.__new__ = staticmethod(make)

    fake_tensor.FakeTensorConverter.from_real_tensor = converted  # type: ignore[method-assign]


def blocks() -> dict[str, Any]:
    """Call name to call: a double and a single block of klein 4B, with one noise level and with two."""
    config = Flux2Transformer2DModel.load_config(geometry.KLEIN_4B / "transformer")
    with init_empty_weights():
        model = Flux2Transformer2DModel.from_config(config, num_layers=1, num_single_layers=1).to(torch.bfloat16)
    model.to_empty(device="cpu").requires_grad_(False).eval()
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    double.attn.set_processor(PackedDoubleProcessor())
    single.attn.set_processor(PackedSingleProcessor())
    compiled.compile_blocks(model)
    packing = Packing.of(TEXTS, IMAGES, torch.device("cpu"))
    packing = replace(packing, ends=packing.ends.clone())
    pass_for_cuda(packing.host_ends)
    width, heads = model.inner_dim, config["attention_head_dim"]
    extras, rotary = {"packing": packing}, tuple(torch.zeros(sum(packing.lengths), heads) for _ in range(2))

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(1, *shape, dtype=torch.bfloat16)

    def called(levels: int) -> dict[str, Any]:
        text, image, both = (1, 1, 1) if levels == 1 else (sum(TEXTS), sum(IMAGES), sum(packing.lengths))
        of_image, of_text, of_both = zeros(image, 6 * width), zeros(text, 6 * width), zeros(both, 3 * width)
        texts, images = zeros(sum(TEXTS), width), zeros(sum(IMAGES), width)
        return {
            f"double, {levels} levels": lambda: double(images, texts, of_image, of_text, rotary, extras),
            f"single, {levels} levels": lambda: single(
                zeros(sum(packing.lengths), width), None, of_both, rotary, extras
            ),
        }

    return called(1) | called(2)


def main() -> None:
    install(seen := Seen())
    made = {}
    for name, call in blocks().items():
        seen.kernels, seen.refused = [], set()
        torch._dynamo.reset()
        ended = ""
        try:
            with torch.inference_mode():
                call()
        except RuntimeError as error:
            ended = str(error).splitlines()[0]
        made[name] = {"kernels": seen.kernels, "refused": sorted(seen.refused), "ended": ended}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
