"""A CUDA device where there is none: tensors without values on `cuda:0`, and who watches what is done with them.

To be used in a process of its own: it changes torch for good.
"""

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

INTENDED = "kleinserve.attend.default"  # it reads the sequences' ends on the host too
WEIGHING = ("linear", "mm", "addmm", "bmm", "convolution", "conv2d", "conv_transpose2d")


class Stream:
    """A stream by name; `done`: how much of the work was over when somebody last waited for it."""

    current: "Stream"
    work = 0

    def __init__(self, name: str = "aside"):
        self.name, self.done = name, 0

    def synchronize(self) -> None:
        self.done = Stream.work


Stream.current = Stream("default")


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    before, Stream.current = Stream.current, stream
    try:
        yield
    finally:
        Stream.current = before


class Event:
    def __init__(self, **_: object):
        self._stream = Stream.current

    def record(self) -> None:
        self._stream = Stream.current

    def synchronize(self) -> None:
        self._stream.synchronize()


def guard(directory: Path) -> Path:
    """The library that a CPU build of torch lacks, built in the directory."""
    library, source = directory / "guard.so", Path(__file__).with_name("guard.cpp")
    place = Path(torch.__path__[0])
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{place}/include", f"-L{place}/lib", "-lc10"]
    subprocess.run(["g++", str(source), "-o", str(library), *flags], check=True)
    return library


def install(directory: Path, free_bytes: int = 80 << 30) -> FakeTensorMode:
    """Load the guard, and have torch say that there is one device."""
    ctypes.CDLL(str(guard(directory)))
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.mem_get_info = lambda device=None: (free_bytes, free_bytes)
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.get_device_name = lambda device=None: "none"
    cuda.max_memory_reserved = lambda device=None: 0
    cuda.empty_cache = lambda: None
    cuda.Stream = lambda device=None: Stream()
    cuda.stream = on_stream
    cuda.current_stream = lambda device=None: Stream.current
    cuda.Event = Event
    module: Any = torch.nn.Module
    module._apply = _apply
    tensor: Any = torch.Tensor
    tensor.pin_memory = lambda self: self
    whole: Any = torch
    whole.tensor = _without_constant(torch.tensor)
    return FakeTensorMode(allow_non_fake_inputs=True)


def _without_constant(make: Callable[..., Any]) -> Callable[..., Any]:
    """torch.tensor, whose fakes keep their values, which would be computed with for real."""

    def made(*args: Any, **kwargs: Any) -> Any:
        tensor = make(*args, **kwargs)
        tensor.constant = None
        return tensor

    return made


def _apply(module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """As torch's, with new parameters: those without values cannot be moved in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(function(parameter.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


@dataclass
class Watch(TorchDispatchMode):
    """What passes between host and device, in which dtypes it computes, and what was read before it was written.

    A copy is (shape, dtype); `weights`: bytes of parameters and buffers copied to the device.
    """

    to_device: list[tuple[list[int], str]] = field(default_factory=list)
    to_host: list[tuple[list[int], str]] = field(default_factory=list)
    weights: int = 0
    mixed: set[str] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    unordered: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self._check_order(str(func), given)
        made = func(*args, **(kwargs or {}))
        out = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in given if x.dim()}
        self._note(func, given, out, devices)
        Stream.work += 1
        for tensor in out:
            if tensor.device.type == "cuda":
                WRITTEN[tensor] = Stream.current, Stream.work
        return made

    def _note(self, func: Any, given: list[torch.Tensor], out: list[torch.Tensor], devices: set[str]) -> None:
        packet = func.overloadpacket.__name__
        if not out or not given:
            return
        copy = [*out[0].shape], str(out[0].dtype).removeprefix("torch.")
        source = given[1] if packet == "copy_" else given[0]
        if source.device.type == "cpu" and out[0].device.type == "cuda" and (packet == "copy_" or devices <= {"cpu"}):
            if isinstance(source, torch.nn.Parameter) or id(source) in WEIGHTS:
                self.weights += source.nbytes
            else:
                self.to_device.append(copy)
        elif source.device.type == "cuda" and out[0].device.type == "cpu":
            self.to_host.append(copy)
        elif len(devices) > 1 and str(func) != INTENDED:
            self.mixed.add(str(func))
        if packet in WEIGHING and out[0].device.type == "cuda":
            self.dtypes.add(str(out[0].dtype).removeprefix("torch."))

    def _check_order(self, name: str, given: list[torch.Tensor]) -> None:
        """What another stream wrote may be read once somebody has waited for that stream."""
        for tensor in given:
            stream, work = WRITTEN.get(tensor, (Stream.current, 0))
            if stream is not Stream.current and stream.done < work:
                self.unordered.add(f"{name} on {Stream.current.name} reads what {stream.name} wrote")

    def facts(self) -> dict[str, Any]:
        return {name: sorted(v) if isinstance(v, set) else v for name, v in vars(self).items() if name in FACTS}


FACTS = ("to_device", "to_host", "weights", "mixed", "dtypes", "unordered")
WRITTEN = WeakIdKeyDictionary()  # by tensor: the stream that wrote it, and when
WEIGHTS: set[int] = set()
