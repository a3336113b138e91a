"""What the process finds around it: open files, signals, a home, cores, malloc. Knows nothing of what it serves.

Imports little, so that the first lines of `main` can call it before anything heavy is loaded.
"""

import math
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

LINE_BYTES_MAX = 4096  # what a pipe that says it has room takes without blocking (PIPE_BUF)
ENDING = (signal.SIGINT, signal.SIGTERM)
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1  # malloc.h
_MIB = 1024 * 1024


def end_on_signals() -> None:
    """Have SIGINT and SIGTERM end the process at once, with a shell's exit code for them: 130, 143.

    Never by an exception: it could surface anywhere. SIGHUP does nothing, for later it means "read the files again".
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in ENDING:
        signal.signal(number, lambda number, _: os._exit(128 + number))


def end_on_signals_after(last: Callable[[], None]) -> None:
    """As `end_on_signals`, after `last`, on a thread of its own: it does not wait for what the main thread is doing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        number = os.read(reading, 1)[0]
        try:
            last()
        finally:
            os._exit(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in ENDING:
        signal.signal(number, lambda number, _: None)  # the number is in the pipe already


def open_standard_streams() -> None:
    """Open files 0, 1 and 2 on /dev/null where they are closed: else a socket gets the number, and then our output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def say(line: str, number: int = 2) -> None:
    """Write one line to an open file: within a second, whole or cut at `LINE_BYTES_MAX`, or not at all."""
    text = " ".join(line.split()).encode(errors="backslashreplace")
    with suppress(OSError, ValueError):
        if (number != 2 or sys.__stderr__ is not None) and select.select([], [number], [], 1.0)[1]:
            os.write(number, text[: LINE_BYTES_MAX - 1] + b"\n")


def settle_home() -> Path | None:
    """Give a user who has neither name nor home (a bare number, as clusters assign) one of each.

    A home that cannot be written is replaced for caches; for everything, the usage ledger too, only where the user has
    no name either. Returns the folder, the same at every start, or None where there was nothing to do.
    """
    import pwd

    has_name = True
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        has_name = False
    if not has_name and not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = f"uid{os.getuid()}"  # getpass.getuser() would raise
    home = os.path.expanduser("~")
    if os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return None
    folder = _private_folder()
    if folder is not None:
        if not has_name:
            os.environ["HOME"] = str(folder)
        os.environ.setdefault("XDG_CACHE_HOME", str(folder / ".cache"))
        os.environ.setdefault("HF_HOME", str(folder / ".cache" / "huggingface"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / ".cache" / "triton"))
    return folder


def _private_folder() -> Path | None:
    """A folder for this user alone in the temporary directory; None where nothing can be written."""
    import tempfile

    try:
        folder = Path(tempfile.gettempdir()) / f"kleinserve-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:  # another's trap
            return Path(tempfile.mkdtemp(prefix="kleinserve-"))
    except OSError:
        return None
    return folder


def tune(arenas: int) -> None:
    """Set what libraries read when they are loaded: to be called before they are. `arenas`: see `limit_arenas`."""
    limit_arenas(arenas)
    keep_freed()
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("DIFFUSERS_VERBOSITY", "error"),  # it imports torchao where that is installed, which tells of its kernels
        ("GRPC_VERBOSITY", "NONE"),  # gRPC's C core writes to file 2 itself, which may block
    ):
        os.environ.setdefault(name, value)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name. Steps differ in size: whole blocks would not fit
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def limit_arenas(arenas: int) -> bool:
    """Have glibc's malloc use this many arenas (0: as it likes), unless its own variables say how many.

    To be called before there are threads. False where it is not so: another libc, or the variables.
    """
    import ctypes

    if arenas == 0 or "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, arenas))
    except (AttributeError, OSError):
        return False


def keep_freed() -> bool:
    """Have glibc's malloc keep up to 256 MiB that are free for the next step, unless its own variables say otherwise.

    Else what a step or a decode frees is unmapped, and mapped and zeroed for the next one: 6000 page faults an image.
    `give_back` returns it when nobody calls.
    False where it is not so: another libc, or the variables.
    """
    import ctypes

    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    tuned = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in names) or "mmap_threshold" in tuned or "trim_threshold" in tuned:
        return False
    try:
        malloc = ctypes.CDLL(None).mallopt
        return bool(malloc(_M_MMAP_THRESHOLD, 32 * _MIB) and malloc(_M_TRIM_THRESHOLD, 256 * _MIB))  # 32: its most
    except (AttributeError, OSError):
        return False


def give_back() -> bool:
    """Return to the system what glibc's malloc keeps free. Takes milliseconds. False: another libc."""
    import ctypes

    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False


def cores(member: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use, at least 1: by affinity and by every cgroup's quota above it, rounded up."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(member, root))]))


def _quotas(member: Path, root: Path) -> Iterator[float]:
    """The cores that each cgroup of version 1 or 2 around the process grants it, where they grant less than all."""
    try:
        lines = [line.split(":", 2) for line in member.read_text(errors="replace").splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            tops, read = (root, root / "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            tops, read = (root / controllers, root / "cpu"), _quota_v1
        else:
            continue
        # Within a container the path may be the host's: then only the top is there, and it is the container's own.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            for depth in range(len(parts) + 1):
                with suppress(OSError, ValueError, ZeroDivisionError):
                    yield from read(top.joinpath(*parts[:depth]))


def _quota_v2(group: Path) -> Iterator[float]:
    quota, period = (group / "cpu.max").read_text().split()
    if quota != "max":
        yield int(quota) / int(period)


def _quota_v1(group: Path) -> Iterator[float]:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    if quota > 0:
        yield quota / int((group / "cpu.cfs_period_us").read_text())
