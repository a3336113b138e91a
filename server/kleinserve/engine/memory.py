"""Where the weights live: device, dtype, and whether text encoder and VAE stay on the device between uses."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from kleinserve.engine.checkpoint import Layout, skeleton
from kleinserve.errors import UnusableCheckpoint

GIB = 1024**3
# What torch's CPU allocator, the CUDA runtime and cuBLAS say, in errors of other types.
_EXHAUSTED = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
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


@contextmanager
def lent(module: torch.nn.Module, device: torch.device, is_offloaded: bool) -> Iterator[None]:
    """Hold `module` on the device for the block; put it back where it is offloaded, whatever happens."""
    if not is_offloaded:
        yield
        return
    try:
        module.to(device)  # may run out of memory half-way
        yield
    finally:
        module.to("cpu")


def process_bytes() -> dict[str, int]:
    """This process's resident memory now and at its peak, and the machine's total, in bytes."""
    used = psutil.Process().memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return {"used": used, "peak": max(used, peak), "total": psutil.virtual_memory().total}


def is_exhausted(error: BaseException) -> bool:
    """Whether `error` means that memory, the accelerator's or the machine's, did not suffice, whoever asked for it."""
    is_said = any(words in str(error) for words in _EXHAUSTED)
    return is_said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def is_fatal(error: BaseException) -> bool:
    """Whether `error` leaves the accelerator unusable for this process (an illegal access, a lost device)."""
    return isinstance(error, torch.AcceleratorError) and not is_exhausted(error)


def finish(device: torch.device) -> None:
    """Wait until the device has done what this thread asked of it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def release() -> None:
    """Give cached blocks back, so that a smaller attempt finds room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
