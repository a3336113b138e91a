"""The `klein` command as a process of its own, on pipes and on a terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

RUN = "import sys; from kleinclient.cli import main; sys.exit(main())"
# Tests in a shell's background ignore SIGINT, and what they start would, too.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + RUN
# The first terminal that the leader of a new session opens becomes its own: with that, Ctrl-C is a signal.
ON_ITS_TERMINAL = "import os; os.open(os.ttyname(0), os.O_RDWR); " + INTERRUPTIBLE


def klein(
    *arguments: str, server: str = "127.0.0.1:9", folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The finished command, its output caught; without `server` there is nobody to ask."""
    command = [sys.executable, "-c", RUN, *arguments]
    environment = {**os.environ, "KLEIN_SERVER": server, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


@contextmanager
def running(arguments: list[str], server: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The command under way on pipes, which SIGINT reaches even where the tests ignore it; killed."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "KLEIN_SERVER": server},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def on_a_terminal(arguments: list[str], server: str, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A process of the command on a terminal of 24 by 80, and that terminal's other end; killed."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    with subprocess.Popen(
        [sys.executable, "-c", ON_ITS_TERMINAL, *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        cwd=folder,
        env={**os.environ, "KLEIN_SERVER": server, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    ) as process:
        os.close(its)
        try:
            yield process, ours
        finally:
            process.kill()  # a test that fails leaves nothing running


def read_until(terminal: int, words: str | None, seconds: float = 30) -> str:
    """What the terminal shows up to `words`, or to the end of the process."""
    shown, end = "", time.monotonic() + seconds
    while time.monotonic() < end and (words is None or words not in shown):
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # how Linux says that the process has closed its end
                break
    if words is None:
        os.close(terminal)
    if words is not None and words not in shown:
        pytest.fail(f"{words!r} was not shown, but {re.sub(chr(27) + r'[^A-Za-z]*[A-Za-z]|▀', '', shown)[-500:]!r}")
    return shown
