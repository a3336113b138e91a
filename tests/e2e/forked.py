"""The real server, started within a second: its libraries are imported once, and each server is a fork of that process.

As tests/e2e/conftest.py's otherwise: the same `main`, a process of its own, its own ports, killed as it is.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.e2e.conftest import Serving, announced

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [f"kleinserve.{name}" for name in ("app", "logs", "engine.engine", "backend.local", "rpc.server", "usage.sql_keys")]
)


@dataclass
class Forked:
    """What tests use of subprocess.Popen."""

    process: ForkServerProcess
    stdout: Iterator[str]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def terminate(self) -> None:
        self.process.terminate()

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode


@contextmanager
def forked(*arguments: str, log: Path | None = None, **environment: str) -> Iterator[Serving]:
    """A warm server with these arguments and variables; killed where it has not ended. `log`: its standard error."""
    reads, writes = _FORKS.Pipe(duplex=False)
    command = ["serve", "--port", "0", "--metrics-port", "0", *arguments]
    settings = {"KLEINSERVE_LEDGER": "none", **environment}
    process = _FORKS.Process(target=_serve, args=(command, settings, writes, str(log or os.devnull)))
    process.start()
    writes.close()
    with os.fdopen(reads.fileno(), closefd=False) as stdout:
        child = Forked(process, stdout)
        try:
            yield announced(child)  # type: ignore[arg-type]
        finally:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)  # one that a test has stopped
            child.kill()
            process.close()
            reads.close()


def _serve(
    command: list[str], settings: dict[str, str], stdout: "multiprocessing.connection.Connection", log: str
) -> None:
    from kleinserve import __main__

    os.dup2(stdout.fileno(), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(settings)
    sys.argv = ["kleinserve", *command]
    __main__.main()
