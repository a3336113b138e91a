"""Servers on one PostgreSQL, and Envoy before them: real processes on this machine, ended with their owner."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.forked import ROOT, Process, Start, spawned

START_SECONDS = 120.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A kleinserve on a fixed port, which may be started again. `log` is its standard error."""

    def __init__(self, name: str, ledger: str, folder: Path, settings: Mapping[str, str], start: Start):
        self.name, self.log = name, folder / f"{name}.log"
        self.target, self.metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        here = {"LEDGER": ledger, "OWNER": name, "THREADS": "1", "PORT": _port(self.target)}
        there = here | {"METRICS_PORT": _port(self.metrics)} | dict(settings)
        self._environment = os.environ | {f"KLEINSERVE_{name}": value for name, value in there.items()}
        self._start = start
        self.process: Process | None = None

    def begin(self) -> None:
        """Start, without waiting for its warm-up."""
        self.kill()
        with self.log.open("a") as log:
            self.process = self._start("kleinserve", ["serve"], self._environment, log.fileno())

    def wait(self) -> None:
        """Until it serves."""
        assert self.process is not None
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith("serving on"):
            raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-2000:]}")

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.begin()
        self.wait()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, seconds: float = 90.0) -> None:
        """Drain it. Raises: AssertionError where it does not end well."""
        assert self.process is not None
        self.send(signal.SIGTERM)
        code = self.process.wait(seconds)
        assert code == 0, f"{self.name} ended with {code}: {self.log.read_text()[-2000:]}"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def page(self, path: str) -> str:
        with _opener().open(f"http://{self.metrics}{path}", timeout=10) as response:
            return str(response.read().decode())

    def counted(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.page("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line))


def _port(target: str) -> str:
    return target.rpartition(":")[2]


@contextmanager
def servers(
    ledger: str, folder: Path, names: tuple[str, ...] = ("a", "b"), start: Start = spawned, **settings: str
) -> Iterator[tuple[Server, ...]]:
    """So many servers, warm; killed at the end."""
    made = tuple(Server(name, ledger, folder, settings, start) for name in names)
    with ExitStack() as stack:
        for server in made:
            stack.callback(server.kill)
            server.begin()
        for server in made:
            server.wait()
        yield made


def configured(*arguments: str) -> str:
    """What `kleinserve envoy-config` prints."""
    command = [sys.executable, "-m", "kleinserve", "envoy-config", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


@dataclass(frozen=True)
class Envoy:
    """Where it listens, and where it tells of itself."""

    target: str
    admin: str

    def until_healthy(self, *servers: Server) -> None:
        """Wait until it sends requests to each of these: it looks twice a second."""
        wanted = {server.target for server in servers}
        deadline = time.monotonic() + START_SECONDS
        while not wanted <= self._healthy():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Envoy does not find {wanted - self._healthy()} healthy")
            time.sleep(0.05)

    def _healthy(self) -> set[str]:
        """Those that both of its clusters find healthy."""
        with _opener().open(f"http://{self.admin}/clusters", timeout=10) as response:
            lines = [line.split("::") for line in response.read().decode().splitlines()]
        flags = [(line[1], line[3]) for line in lines if len(line) == 4 and line[2] == "health_flags"]
        return {address for address, _ in flags} - {address for address, flag in flags if flag != "healthy"}


@contextmanager
def envoy(*servers: Server, arguments: tuple[str, ...] = ()) -> Iterator[Envoy]:
    """Envoy before these servers, once it finds all of them healthy."""
    port, admin = free_port(), free_port()
    told = configured(*(f"--replica={server.target}" for server in servers), f"--port={port}", *arguments)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(told)
        file.flush()
        binary = str(Path(sys.executable).with_name("envoy"))
        spy = f"admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}"
        more = ["--config-yaml", spy, "--concurrency", "1", "--use-dynamic-base-id", "-l", "off"]
        process = subprocess.Popen([binary, "-c", file.name, *more])
        try:
            for each in (admin, port):
                _until_listening(each)
            made = Envoy(f"127.0.0.1:{port}", f"127.0.0.1:{admin}")
            made.until_healthy(*servers)
            yield made
        finally:
            process.kill()
            process.wait()


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _until_listening(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
