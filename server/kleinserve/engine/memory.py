"""Where the weights live: device, dtype, and whether text encoder and VAE stay on the device between uses."""

import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from kleinserve.engine.checkpoint import Layout, skeleton
from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory, KleinError, UnusableCheckpoint

GIB = 1024**3
# What says so in errors of other types, in lower case: torch's CPU allocator; the CUDA runtime and driver; cuBLAS;
# cuDNN, which also finds no engine whose workspace would fit; Triton.
_EXHAUSTED = (
    "defaultcpuallocator",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine",
    "out of resource",
)
_WORK_BYTES = int(1.5 * GIB)  # activations of one 1024² step and decode in bfloat16
_TEXT_WORK_BYTES = GIB // 2  # the hidden states of all of klein-4b's layers, of 7 prompts encoded together
_LARGE_PARAMETERS = 1e9  # a model of fewer has activations as small as it
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """The choice and, for the log, why."""

    device: torch.device
    dtype: torch.dtype
    is_offloaded: bool
    reason: str


def plan(layout: Layout, device: str, dtype: str, memory: str) -> Plan:
    """Choose device, dtype and memory mode, honouring what is asked.

    offload: only the transformer stays on the device; text encoder and VAE come when they are used.
    Raises: UnusableCheckpoint, one line with the amounts, where it does not fit or a choice cannot be honoured.
    """
    chosen = _device(device)
    if chosen.type == "cpu" and memory == "offload":
        raise UnusableCheckpoint("memory offload needs an accelerator to offload from; the device is cpu")
    free = torch.cuda.mem_get_info(chosen)[0] if chosen.type == "cuda" else psutil.virtual_memory().available
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in skeleton(layout).items()}
    dtypes = [dtype] if dtype != "auto" else (["bfloat16"] if chosen.type == "cuda" else ["float32", "bfloat16"])
    modes = [memory] if memory != "auto" else (["resident", "offload"] if chosen.type == "cuda" else ["resident"])
    tried = []
    for name in dtypes:
        for mode in modes:
            needed = _bytes(counts, _DTYPES[name].itemsize, mode)
            tried.append(f"{mode} in {name} needs {needed / GIB:.1f} GiB")
            if needed <= free:
                reason = f"{tried[-1]}, {free / GIB:.1f} GiB free on {chosen}"
                return Plan(chosen, _DTYPES[name], mode == "offload", reason)
    raise UnusableCheckpoint(f"{layout.name} does not fit: {', '.join(tried)}; {free / GIB:.1f} GiB free on {chosen}")


def _bytes(counts: dict[str, int], itemsize: int, mode: str) -> int:
    """The most that is on the device at once. Offloaded, the text encoder and the VAE never are at the same time."""
    is_large = sum(counts.values()) > _LARGE_PARAMETERS
    work, text_work = (_WORK_BYTES, _TEXT_WORK_BYTES) if is_large else (0, 0)
    transformer, text, vae = (counts[name] * itemsize for name in ("transformer", "text_encoder", "vae"))
    if mode == "offload":
        return transformer + max(text + text_work, vae + work)
    return transformer + text + vae + work


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UnusableCheckpoint(f"device {device!r} is not one of auto, cpu, cuda, cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UnusableCheckpoint(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise UnusableCheckpoint(f"device {device!r} is not there: {torch.cuda.device_count()} CUDA devices")
    return chosen


Lend = Callable[[], AbstractContextManager[None]]


def lender(module: torch.nn.Module, device: torch.device, is_offloaded: bool) -> Lend:
    """What holds `module` on the device for a block: nothing to do where it stays there.

    Offloaded, its weights lie in pinned host memory and never leave it: each block copies them to the device, and
    forgets the copies at its end, whatever happens.
    """
    if not is_offloaded:
        module.to(device)
        return nullcontext
    places: list[tuple[dict[str, Any], str, torch.Tensor]] = [
        (tensors, name, tensor)
        for part in module.modules()
        for tensors in (part._parameters, part._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    if device.type == "cuda":
        for _, _, tensor in places:
            tensor.data = tensor.data.pin_memory()

    @contextmanager
    def lent() -> Iterator[None]:
        try:
            for tensors, name, host in places:  # may run out of memory half-way
                copy = host.to(device, non_blocking=True)
                tensors[name] = _as(host, copy)
            yield
        finally:
            for tensors, name, host in places:
                tensors[name] = host

    return lent


def _as(host: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """`copy` as a parameter where `host` is one."""
    return torch.nn.Parameter(copy, requires_grad=False) if isinstance(host, torch.nn.Parameter) else copy


def process_bytes() -> dict[str, int]:
    """This process's resident memory now and at its peak, and the machine's total, in bytes."""
    used = psutil.Process().memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return {"used": used, "peak": max(used, peak), "total": psutil.virtual_memory().total}


def is_exhausted(error: BaseException) -> bool:
    """Whether `error` means that memory, the accelerator's or the machine's, did not suffice, whoever asked for it."""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in said for words in _EXHAUSTED)


def is_fatal(error: BaseException) -> bool:
    """Whether `error` leaves the accelerator unusable for this process (an illegal access, a lost device)."""
    return isinstance(error, torch.AcceleratorError) and not is_exhausted(error)


@contextmanager
def reported() -> Iterator[None]:
    """Turn what the libraries raise in the block about memory or the device into AcceleratorOutOfMemory or -Lost.

    By then the memory that the failed work held is free: its traceback keeps the lines, and no tensors.
    """
    try:
        yield
    except KleinError:
        raise
    except Exception as error:
        if is_fatal(error):
            raise AcceleratorLost(str(error)) from error
        _forget(error)
        release()
        if is_exhausted(error):
            raise AcceleratorOutOfMemory("not enough accelerator memory") from error
        raise


def _forget(error: BaseException | None) -> None:
    """Clear the local variables of the frames that `error`, and what it came of, went through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def finish(device: torch.device) -> None:
    """Wait until the device has done what this thread asked of it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def release() -> None:
    """Give cached blocks back, so that a smaller attempt finds room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
