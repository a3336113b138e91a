"""The real server's process, started in seconds: what it imports is imported once, and each is a fork of that.

All else is as with `python -m MODULE`: the same `__main__`, a process of its own with its own variables and files.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORTED = ("app", "logs", "server", "engine.engine", "backend.local", "usage.sql_keys", "web.app", "web.server")

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([f"kleinserve.{name}" for name in IMPORTED])


class Forked:
    """What tests use of subprocess.Popen. Its log goes into the open file of this number."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: int):
        reads, writes = _FORKS.Pipe(duplex=False)
        errors = Connection(os.dup(log), readable=False)  # so that the file's number travels
        self._process = _FORKS.Process(target=_run, args=(module, arguments, dict(environment), writes, errors))
        self._process.start()
        writes.close()
        errors.close()
        self.stdout = os.fdopen(os.dup(reads.fileno()))
        reads.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code


def spawned(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: int) -> "subprocess.Popen[str]":
    """As `Forked`, by the command that users give, in an interpreter of its own: most of the start is imports."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment)


Process = Forked | subprocess.Popen[str]
Start = Callable[[str, Sequence[str], Mapping[str, str], int], Process]


def _run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], stdout: Connection, stderr: Connection
) -> None:
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stdout.close()
    stderr.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
