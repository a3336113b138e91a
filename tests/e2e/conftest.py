"""A real server on free ports, in a process of its own."""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import pytest

from tests.e2e.calls import opened


@dataclass(frozen=True)
class Serving:
    """Where a server listens and where its metrics are, both HOST:PORT; its process."""

    target: str
    metrics: str
    process: "subprocess.Popen[str]"

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


@contextmanager
def served(*arguments: str, module: str = "kleinserve", **environment: str) -> Iterator[Serving]:
    """A server with these arguments and variables, ended by SIGTERM, with exit code 0 unless the test ended it."""
    command = [sys.executable, "-m", module, "serve", "--port", "0", "--metrics-port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        try:
            assert process.stdout is not None
            lines = (re.match(r"serving on (\S+), metrics on (\S+)$", line) for line in process.stdout)
            found = next(filter(None, lines))
            yield Serving(found[1], found[2], process)
            if process.poll() is None:
                process.terminate()
                assert process.wait(60) == 0
        finally:
            process.kill()  # a test that fails leaves nothing running


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with served() as server:
        yield server


@pytest.fixture
async def channel(serving: Serving) -> AsyncIterator[grpc.aio.Channel]:
    async with opened(serving.target) as channel:
        yield channel
