"""A real server on free ports, in a process of its own."""

import asyncio
import os
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from tests.e2e.calls import opened
from tests.e2e.forked import Forked, Process, Start, spawned

ENDLESS = 5000  # steps


@dataclass(frozen=True)
class Serving:
    """Where a server listens and where its metrics are, both HOST:PORT; its process; where faults.py writes ends."""

    target: str
    metrics: str
    process: Process
    ends: Path = Path(os.devnull)

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the metrics port."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.metrics}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def counted(self, name: str) -> float:
        """The sum of a metric over its labels; a name may carry labels, as in the exposition."""
        lines = self.page("/metrics")[1].splitlines()
        pattern = re.escape(name) if "{" in name else rf"{name}[{{ ]"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(pattern, line))

    async def counts(self, name: str, value: float) -> None:
        """Wait until a metric has this value; a scrape has nothing to await."""
        async with asyncio.timeout(30):
            while self.counted(name) != value:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@contextmanager
def launched(
    *arguments: str,
    module: str = "kleinserve",
    log: Path | int | None = None,
    start: Start = Forked,
    **environment: str,
) -> Iterator[Process]:
    """A server's process with these arguments and variables, on free ports unless they say others; killed.

    Its log goes into the file `log`, a path or an open file's number, or where the test's goes.
    """
    command = ["serve", "--port", "0", "--metrics-port", "0", *arguments]
    variables = {**os.environ, "KLEINSERVE_LEDGER": "none", **environment}
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("a")).fileno() if isinstance(log, Path) else 2 if log is None else log
        process = start(module, command, variables, errors)
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        try:
            yield process
        finally:
            process.kill()  # a test that fails leaves nothing running
            process.wait()


def announced(process: Process) -> Serving:
    """The server of this process, once it says that it serves."""
    assert process.stdout is not None
    lines = (re.match(r"serving on (\S+), metrics on (\S+)$", line) for line in process.stdout)
    found = next(filter(None, lines))
    return Serving(found[1], found[2], process)


@contextmanager
def served(
    *arguments: str,
    module: str = "kleinserve",
    log: Path | int | None = None,
    start: Start = Forked,
    **environment: str,
) -> Iterator[Serving]:
    """A warm server, ended by SIGTERM, with exit code 0 unless the test ended it."""
    with launched(*arguments, module=module, log=log, start=start, **environment) as process:
        yield announced(process)
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 0


@contextmanager
def killed(*arguments: str, **environment: str) -> Iterator[Serving]:
    """A warm server, killed where it has not ended; its log goes nowhere."""
    with launched(*arguments, log=Path(os.devnull), **environment) as process:
        yield announced(process)


@pytest.fixture(scope="session")
def serving() -> Iterator[Serving]:
    """A server started as users start it; all others are forks (forked.py)."""
    with served(start=spawned) as server:
        yield server


@pytest.fixture
def sharing() -> Iterator[Serving]:
    """A server whose steps have room for many, however fast the machine was found to be."""
    with served(KLEINSERVE_STEP_TOKENS_MAX="8192") as server:
        yield server


@pytest.fixture(scope="session")
def faulty() -> Iterator[Serving]:
    """A server that fails on purpose (faults.py), waits a second for a reader and sends images in small pieces."""
    with TemporaryDirectory() as folder:
        settings = {
            "KLEINSERVE_READER_STALL_SECONDS": "1",
            "KLEINSERVE_CHUNK_BYTES": "16384",
            "KLEINSERVE_MAX_STEPS": "200",
            "FAULTS_IMAGE_TOKENS_MAX": "200",
            "FAULTS_ENDS_FILE": f"{folder}/ends",
        }
        with served(module="tests.e2e.faults", **settings) as server:
            yield replace(server, ends=Path(folder) / "ends")


@pytest.fixture(scope="session")
def single() -> Iterator[Serving]:
    """A server that steps one request at a time, so that the others wait, and whose queue holds few bytes.

    Its requests may have so many steps that none ends by itself during a test.
    """
    settings = {"STEP_TOKENS_MAX": "1", "QUEUE_BYTES_MAX": "100000", "MAX_STEPS": str(ENDLESS)}
    with served(**{f"KLEINSERVE_{name}": value for name, value in settings.items()}) as server:
        yield server


@pytest.fixture(scope="session")
def billing() -> Iterator[Serving]:
    """A server with a ledger of its own, which steps one request at a time and keeps little."""
    with TemporaryDirectory() as folder:
        settings = {"LEDGER": f"sqlite:///{folder}/usage.db", "STEP_TOKENS_MAX": "1", "KEPT_BYTES_MAX": "4000000"}
        with served(**{f"KLEINSERVE_{name}": value for name, value in settings.items()}) as server:
            yield server


@pytest.fixture
async def channel(serving: Serving) -> AsyncIterator[grpc.aio.Channel]:
    async with opened(serving.target) as channel:
        yield channel
