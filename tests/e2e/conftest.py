"""A real server on free ports, in a process of its own."""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


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
def served(*arguments: str) -> Iterator[Serving]:
    """A server with these arguments, ended by SIGTERM, with exit code 0."""
    command = [sys.executable, "-m", "kleinserve", "serve", "--port", "0", "--metrics-port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = next(filter(None, (re.match(r"serving on (\S+), metrics on (\S+)$", line) for line in process.stdout)))
        yield Serving(found[1], found[2], process)
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with served() as server:
        yield server
