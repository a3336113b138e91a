"""Strangers' pictures, decoded in processes of their own: the server's end of codec/worker.py.

Lives on the event loop. Knows nothing of requests beyond the names by which they take turns.
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from kleinserve import process
from kleinserve.codec.reference import AREA_MAX
from kleinserve.codec.turns import Turns
from kleinserve.codec.worker import CANCEL, PACKET_BYTES_MAX, Task
from kleinserve.config import Config
from kleinserve.core import Pixels, Reference, Size
from kleinserve.errors import (
    Draining,
    Internal,
    KleinError,
    ReferenceTooLarge,
    ReferenceUnreadable,
    ReferenceUnsupported,
)

REFUSALS = {error.reason: error for error in (ReferenceTooLarge, ReferenceUnreadable, ReferenceUnsupported)}
OUTCOMES = ("decoded", "refused", "over_budget", "crashed", "cancelled", "large")
WORKERS_DEFAULT = 2
SMALL_PIXELS = 4 * 1024 * 1024  # decoded within 0.3 s and 100 MiB
INHERITED = ("PATH", "PYTHON", "LD_", "LANG", "LC_", "TMPDIR", "TZ")  # beginnings of variables' names; none is a secret
END_SECONDS = 5.0  # for a worker to see that the server is done with it

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Decoding:
    """One reference that waits or runs; `answer` is its Reference, or the error that refuses it."""

    turn: str
    task: Task
    data: bytes
    answer: asyncio.Future[Reference | KleinError]
    turns: Turns["_Decoding"]  # where it waits or runs
    worker: "_Worker | None" = None
    seconds: float = 0.0  # that workers have spent on it


class _Worker:
    """One worker process and the socket to it. Started when made, and again when it is needed and gone."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and return; what it is sent waits until it is ready. Raises: OSError.

        A plain exec (vfork), so nothing of this process's threads and libraries comes along. Its own process group:
        Ctrl-C is for the server alone; not a session of its own, where `nice` would count for nothing.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kleinserve.codec.worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                process_group=0,
                env=_environment(),
            )

    async def run(self, task: Task, file: int) -> dict[str, Any]:
        """The worker's answer to the task. Raises: OSError or EOFError if it died."""
        if self._socket is None:
            self.start()
        assert self._socket is not None
        socket.send_fds(self._socket, [json.dumps(asdict(task)).encode()], [file])
        packet = await asyncio.get_running_loop().sock_recv(self._socket, PACKET_BYTES_MAX)
        if not packet:
            raise EOFError("a worker process died")
        return dict(json.loads(packet))

    def cancel(self) -> None:
        """End what runs; its answer comes all the same."""
        if self._socket is not None:
            with suppress(OSError):  # it is dead, which `run` sees
                self._socket.send(CANCEL)

    def hang_up(self) -> None:
        """Tell the process to end, and whatever it runs."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def end(self, seconds: float) -> None:
        """Wait until the process is gone; after these seconds it is killed, and its fork with it."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Leave nothing of it. Not while `run` waits: its socket must stay until it has seen the end."""
        self.end(0)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _environment() -> dict[str, str]:
    """What Python needs, and none of the server's settings: no password lies in the memory of a worker."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    return inherited | {"OPENBLAS_NUM_THREADS": "1"}  # a process with threads does not fork well


def _file(data: bytes) -> int:
    """A file in memory that holds the data; by its number."""
    file = os.memfd_create("reference")
    os.pwrite(file, data, 0)
    return file


class Intake:
    """Decodes references in worker processes, in turns, each within its budget of seconds and bytes.

    Large pictures are told by their headers and wait apart. They never have the last worker, so small ones pass them.
    `measure` is told each reference's outcome (decoded, refused, over_budget, crashed) and its seconds, without the
    wait for its turn.
    """

    def __init__(self, config: Config, measure: Callable[[str, float], None]):
        self._config, self._measure = config, measure
        count = config.intake_workers or min(WORKERS_DEFAULT, process.cores())
        self._workers = [_Worker() for _ in range(count)]
        self._idle = list(self._workers)
        self._turns: Turns[_Decoding] = Turns()
        self._large: Turns[_Decoding] = Turns()
        self._large_free = count - 1  # workers that may still take a large one; with one worker all are alike
        self._small_max = SMALL_PIXELS if count > 1 else config.reference_pixels_max
        self._running: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def start(self) -> None:
        """Start the worker processes; they get ready by themselves, in a third of a second. Raises: OSError."""
        for worker in self._workers:
            worker.start()

    async def decode(self, turn: str, references: Sequence[bytes], *, keep_alpha: bool) -> tuple[Reference, ...]:
        """The references as the model sees them. `turn`: who sends them; turns share the workers evenly.

        Cancelled: they leave the queue, and what runs of them is ended.
        Raises: the first bad one's RefusedReference, without waiting for those behind it; Draining, Internal.
        """
        if self._is_closed:
            raise Draining()
        decodings = [self._add(turn, index, data, keep_alpha) for index, data in enumerate(references)]
        try:
            self._serve()
            answers = []
            for decoding in decodings:
                answer = await decoding.answer
                if isinstance(answer, KleinError):
                    raise answer
                answers.append(answer)
            return tuple(answers)
        finally:
            for decoding in decodings:
                self._drop(decoding)

    async def close(self) -> None:
        """End the workers, and with Draining whatever still waits or runs."""
        self._is_closed = True
        for decoding in self._turns.clear() + self._large.clear():
            decoding.answer.set_result(Draining())
        for worker in self._workers:
            worker.hang_up()
        await asyncio.gather(*self._running)
        await asyncio.gather(*(asyncio.to_thread(worker.end, END_SECONDS) for worker in self._workers))
        self.kill()

    def kill(self) -> None:
        """End the workers at once, from any state."""
        self._is_closed = True
        for worker in self._workers:
            worker.end(0)
        for worker in self._idle:
            worker.close()

    def _add(self, turn: str, index: int, data: bytes, keep_alpha: bool) -> _Decoding:
        config = self._config
        task = Task(
            index=index,
            keep_alpha=keep_alpha,
            bytes_max=config.reference_bytes_max,
            pixels_max=config.reference_pixels_max,
            small_max=self._small_max,
            seconds_max=config.intake_seconds_max,
            pixel_bytes_max=config.intake_pixel_bytes_max,
        )
        decoding = _Decoding(turn, task, data, asyncio.get_running_loop().create_future(), self._turns)
        self._turns.add(turn, decoding)
        return decoding

    def _drop(self, decoding: _Decoding) -> None:
        """Nobody waits for it any more."""
        decoding.answer.cancel()
        decoding.turns.withdraw(decoding.turn, decoding)
        if decoding.worker is not None:
            decoding.worker.cancel()

    def _serve(self) -> None:
        """Give every idle worker the next reference."""
        while self._idle and not self._is_closed and (decoding := self._next()):
            decoding.worker = self._idle.pop()
            running = asyncio.get_running_loop().create_task(self._run(decoding, decoding.worker))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    def _next(self) -> _Decoding | None:
        """A large one where it may have a worker: those whose size nobody knows yet have the last one to themselves."""
        if self._large_free and (decoding := self._large.take()):
            self._large_free -= 1
            return decoding
        return self._turns.take()

    async def _run(self, decoding: _Decoding, worker: _Worker) -> None:
        """Decode one reference, tell its answer or that it is large, give the worker the next."""
        start = time.monotonic()
        outcome: str = "crashed"
        answer: Reference | KleinError = Internal("references cannot be decoded now")
        try:
            if not decoding.answer.cancelled():
                outcome, answer = await self._decode(decoding, worker)
        except asyncio.CancelledError:  # the event loop ends: nobody gives this worker back any more
            worker.close()
            raise
        except Exception:  # it costs this reference, never the queue behind it
            worker.close()
            logger.exception("decoding a reference failed")
        seconds = time.monotonic() - start
        decoding.worker = None
        decoding.seconds += seconds
        decoding.turns.end(decoding.turn, seconds)
        self._large_free += decoding.turns is self._large
        self._idle.append(worker)
        if not decoding.answer.done():
            self._end(decoding, outcome, answer)
        self._serve()

    def _end(self, decoding: _Decoding, outcome: str, answer: Reference | KleinError) -> None:
        if outcome == "large" and not self._is_closed:
            decoding.task = replace(decoding.task, small_max=decoding.task.pixels_max)
            decoding.turns = self._large
            self._large.add(decoding.turn, decoding)
            return
        if outcome not in ("cancelled", "large"):
            self._measure(outcome, decoding.seconds)
        decoding.answer.set_result(answer)

    async def _decode(self, decoding: _Decoding, worker: _Worker) -> tuple[str, Reference | KleinError]:
        """The outcome and what it means. A worker that dies is no reference's fault: one more is tried."""
        try:
            return await self._attempt(decoding, worker)
        except (OSError, EOFError):
            worker.close()
        if self._is_closed:
            return "cancelled", Draining()
        logger.warning("a worker that decodes references died; another takes its place")
        return await self._attempt(decoding, worker)

    async def _attempt(self, decoding: _Decoding, worker: _Worker) -> tuple[str, Reference | KleinError]:
        file = await asyncio.to_thread(_file, decoding.data)  # 10 MiB take as many milliseconds
        try:
            answer = await worker.run(decoding.task, file)
            return answer["outcome"], self._read(decoding.task, answer, file)
        finally:
            os.close(file)

    def _read(self, task: Task, answer: dict[str, Any], file: int) -> Reference | KleinError:
        """What a worker's answer means. It came from where strangers' bytes are read: nothing in it is trusted."""
        if answer["outcome"] not in OUTCOMES or (answer["outcome"] == "large" and task.small_max == task.pixels_max):
            raise ValueError("a worker's answer is none")
        if answer["outcome"] in ("cancelled", "large"):
            return Draining()  # nobody asks for this answer, but `close`
        if answer["outcome"] != "decoded":
            if detail := answer.get("detail"):
                logger.error("decoding a reference failed: %s", detail)
            return REFUSALS.get(answer.get("reason", ""), ReferenceUnsupported)(
                task.index, answer.get("description", "")
            )
        size, channels = Size(int(answer["width"]), int(answer["height"])), int(answer["channels"])
        expected = size.pixels * channels
        if not 0 < expected == os.fstat(file).st_size <= 4 * AREA_MAX:
            raise ValueError("a worker's pixels do not have the size that it says")
        return Reference(Pixels(size, channels, os.pread(file, expected, 0)), bytes.fromhex(answer["digest"]))
