"""What an intake process runs: each reference in a fork of its own, with a budget of seconds and bytes.

The process itself never touches what strangers send: it forks, waits, and says how the fork ended. So a crash costs
one reference, its memory goes back to the system with it, and the next fork is ready in milliseconds. It imports
Pillow and numpy, and neither torch nor gRPC. Linux only.
"""

import ctypes
import hashlib
import json
import os
import resource
import select
import signal
import socket
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from kleinserve.codec import reference
from kleinserve.errors import RefusedReference

NICE = 19  # a seventieth of the engine's share of a busy core; under SCHED_IDLE it would be none beside others' work
WALL_FACTOR = 12  # beside an engine that is busy all the time a worker gets far more than a twelfth of a core
FIXED_BYTES = 96 * 1024 * 1024  # a file of 10 MiB, its copies, a picture of 1024² and Python's own
PACKET_BYTES_MAX = 4096  # what a pipe takes in one piece
DETAIL_CHARACTERS_MAX = 1500  # of a traceback
CANCEL = b"cancel"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """How to decode one reference; its bytes are in the file that comes with it, where its pixels are left."""

    index: int
    keep_alpha: bool
    bytes_max: int
    pixels_max: int
    small_max: int  # pixels; of a larger one only that is said
    seconds_max: float
    pixel_bytes_max: int


def main() -> None:
    """Serve the socket that is standard input until its other end is closed. A packet is a Task and its file."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the server, which closes the socket when it is done
    os.nice(NICE)
    with suppress(OSError):  # where /proc may not be written
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory ends, this goes before the server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Image.init()  # every plugin now, not in each fork
    control = socket.socket(fileno=0)
    while True:
        packet, files, _, _ = socket.recv_fds(control, PACKET_BYTES_MAX, 1)
        if not packet:
            return
        if files:  # else a cancel that came too late
            answer = _supervise(control, Task(**json.loads(packet)), files[0])
            os.close(files[0])
            with suppress(BrokenPipeError):  # the server is gone, as the next read will say
                control.send(answer)


def _supervise(control: socket.socket, task: Task, file: int) -> bytes:
    """Run one task in a fork. Returns its own answer, unread, or what ended it: budget, cancel, crash."""
    ours, theirs = os.pipe()
    if (fork := os.fork()) == 0:
        _run_fork(task, file, theirs)
    os.close(theirs)
    ended = _wait(control, ours, task.seconds_max * WALL_FACTOR)
    answer = os.read(ours, PACKET_BYTES_MAX) if ended is None else b""
    os.close(ours)
    os.kill(fork, signal.SIGKILL)
    _, status = os.waitpid(fork, 0)
    return answer or json.dumps(ended or _explain(task, os.waitstatus_to_exitcode(status))).encode()


def _wait(control: socket.socket, answers: int, seconds: float) -> dict[str, Any] | None:
    """Wait until the fork answers or is gone (None), the server cancels or is gone, or the time is over."""
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    poll.register(control, select.POLLIN)
    ready = dict(poll.poll(seconds * 1000))
    if answers in ready:
        return None
    if control.fileno() in ready:
        return {"outcome": "cancelled"}
    return {"outcome": "over_budget", "description": f"decoding took more than {seconds:g} s; at most {seconds:g}"}


def _explain(task: Task, code: int) -> dict[str, Any]:
    """What is said of a fork that ended without an answer."""
    if -code in (signal.SIGPROF, signal.SIGXCPU):
        limit = f"{task.seconds_max:g}"
        return {"outcome": "over_budget", "description": f"decoding took over {limit} s of processor; at most {limit}"}
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return {"outcome": "crashed", "description": f"decoding it ended in a crash ({how})"}


def _run_fork(task: Task, file: int, answers: int) -> NoReturn:
    """Decode, answer, exit; never returns."""
    try:
        os.close(0)  # the server's socket: it ends with the process that forked
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.setitimer(signal.ITIMER_PROF, task.seconds_max)  # exact, where RLIMIT_CPU counts whole seconds
        answer = _answer(task, file)
        os.write(answers, json.dumps(answer).encode())
    finally:
        os._exit(1)


def _answer(task: Task, file: int) -> dict[str, Any]:
    pixels = task.pixels_max
    try:
        base = _address_space()
        _limit_memory(base, task, pixels)
        data = os.pread(file, os.fstat(file).st_size, 0)
        image, size = reference.read_header(task.index, data, bytes_max=task.bytes_max, pixels_max=task.pixels_max)
        pixels = size.pixels
        if pixels > task.small_max:
            return {"outcome": "large"}
        _limit_memory(base, task, pixels)
        del data
        return _decode(task, image, file)
    except RefusedReference as error:
        description = error.violations[0].description
        return {"outcome": "refused", "reason": error.reason, "description": description}
    except MemoryError:
        limit = _memory(task, pixels)
        return {"outcome": "over_budget", "description": f"decoding took over {limit} bytes of memory; at most {limit}"}
    except Exception:  # our fault: the server logs it
        return {
            "outcome": "crashed",
            "description": "decoding it failed",
            "detail": traceback.format_exc()[-DETAIL_CHARACTERS_MAX:],
        }


def _decode(task: Task, image: Image.Image, file: int) -> dict[str, Any]:
    """Decode, and leave the pixels in the file in place of the bytes."""
    pixels = reference.read_pixels(task.index, image, keep_alpha=task.keep_alpha)
    digest = hashlib.sha256(f"{pixels.size}/{pixels.channels}/".encode() + pixels.data).hexdigest()
    os.ftruncate(file, 0)
    os.pwrite(file, pixels.data, 0)
    size = {"width": pixels.size.width, "height": pixels.size.height, "channels": pixels.channels}
    return {"outcome": "decoded", "digest": digest, **size}


def _memory(task: Task, pixels: int) -> int:
    return FIXED_BYTES + pixels * task.pixel_bytes_max


def _limit_memory(base: int, task: Task, pixels: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = base + _memory(task, pixels)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
