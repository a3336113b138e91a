"""A server as a process: started, asked what it counted and holds, stopped. Knows no load."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 60
MIB = 2**20


@dataclass(frozen=True)
class Serving:
    """A started server. `metrics`: HOST:PORT of ours."""

    target: str
    metrics: str | None
    process: "subprocess.Popen[str]"

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage since the start, by the server's own metrics; of ours alone."""
        found = re.findall(r'^klein_stage_seconds_sum{stage="(\w+)"} (\S+)$', self.scrape(), re.MULTILINE)
        return {stage: float(seconds) for stage, seconds in found}

    def counted(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        found = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.scrape(), re.MULTILINE)
        return sum(float(value) for value in found)

    def scrape(self) -> str:
        if self.metrics is None:
            return ""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.metrics}/metrics", timeout=30) as response:
            return str(response.read().decode())

    def peak_bytes(self) -> int:
        """The peak resident sets of the process and its descendants until now, summed."""
        files = [Path(f"/proc/{process.pid}/status") for process in self._family()]
        found = [re.search(r"VmHWM:\s+(\d+) kB", file.read_text()) for file in files if file.exists()]
        return sum(int(match[1]) * 1024 for match in found if match)

    def held_bytes(self) -> int:
        """What the process and its descendants hold now, each shared page counted once."""
        held = 0
        for process in self._family():
            with suppress(psutil.Error):  # it has just ended
                held += process.memory_full_info().pss
        return held

    def _family(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Serving]:
    """The server of this command, once it says that it serves. Raises: RuntimeError if it does not start."""
    with (
        log.open("a") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        server = _announced(process)
        if server is None:
            raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()[-3000:]}")
        try:
            yield server
        finally:
            _stop(process)


def ours(log: Path, checkout: Path = ROOT, **settings: object) -> AbstractContextManager[Serving]:
    """`kleinserve serve` of a checkout, with mini, without a ledger, on free ports; settings by their names."""
    folders = [str(checkout / folder) for folder in ("server", "client", "proto/gen")]
    if "ledger" in (checkout / "server/kleinserve/config.py").read_text():
        settings = {"ledger": "none"} | settings
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    environment |= {f"KLEINSERVE_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "kleinserve", "serve", "--port", "0", "--metrics-port", "0"]
    return started(command, environment, log)


def _announced(process: "subprocess.Popen[str]") -> Serving | None:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(r"serving on ([^\s,]+)(?:, metrics on (\S+))?$", line):
            return Serving(found[1], found[2], process)
    return None


def _stop(process: "subprocess.Popen[str]") -> None:
    """End the process and what it leaves behind: LitServe's workers outlive it."""
    if process.poll() is not None:
        return
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        for left in (process, *descendants):
            with suppress(psutil.NoSuchProcess):
                left.kill()
