"""Who is measured: how each is started and stopped, and what memory it took. Knows no trace."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 60
QUEUE_REQUESTS_MAX = 2048  # as many as the peers let wait

OURS = {"ours": (), "compiled": ("--compile", "on")}
TITLES = {
    "ours": "klein-serve",
    "compiled": "klein-serve --compile on",
    "lock": "stock pipeline, lock",
    "window": "stock pipeline, micro-batches",
    "framework": "stock pipeline, LitServe",
}
MODULES = {
    "lock": "benchmarks.peers.lock",
    "window": "benchmarks.peers.window",
    "framework": "benchmarks.peers.framework",
}
NEEDS = {"framework": "litserve"}


@dataclass(frozen=True)
class Serving:
    """A started contestant. `metrics`: HOST:PORT of ours."""

    target: str
    metrics: str | None
    process: "subprocess.Popen[str]"

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage since the start, by the server's own metrics; of ours alone."""
        found = re.findall(r'^klein_stage_seconds_sum{stage="(\w+)"} (\S+)$', self.scrape(), re.MULTILINE)
        return {stage: float(seconds) for stage, seconds in found}

    def scrape(self) -> str:
        if self.metrics is None:
            return ""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.metrics}/metrics", timeout=30) as response:
            return str(response.read().decode())

    def peak_bytes(self) -> int:
        """The peak resident sets of the process and its descendants until now, summed."""
        first = psutil.Process(self.process.pid)
        files = [Path(f"/proc/{process.pid}/status") for process in (first, *first.children(recursive=True))]
        found = [re.search(r"VmHWM:\s+(\d+) kB", file.read_text()) for file in files if file.exists()]
        return sum(int(match[1]) * 1024 for match in found if match)


def accelerator_bytes() -> int:
    """What is taken of the accelerator; its allocators keep what they once took, so after a load this is the peak."""
    if shutil.which("nvidia-smi") is None:
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return int(told[0]) * 1024 * 1024 if told else 0


def missing(contestant: str) -> str:
    """What a contestant needs and is not installed, or nothing."""
    if contestant == "compiled" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "a C++ compiler"
    needed = NEEDS.get(contestant, "")
    return needed if needed and find_spec(needed) is None else ""


@contextmanager
def serving(contestant: str, plan: Plan, threads: int, log: Path) -> Iterator[Serving]:
    """The contestant, ready; its standard error goes to `log`. Raises: RuntimeError if it does not start."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    environment |= _settings(plan) if contestant in OURS else _threads(threads)
    with log.open("a") as errors, _process(_command(contestant, plan, threads), environment, errors) as process:
        started = _started(process)
        if started is None:
            raise RuntimeError(f"{contestant} did not start; {log} says why")
        try:
            yield started
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[str]") -> None:
    """End the process and what it leaves behind: LitServe's workers outlive it."""
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        for left in (process, *descendants):
            with suppress(psutil.NoSuchProcess):
                left.kill()


def _process(command: list[str], environment: dict[str, str], errors: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)  # type: ignore[call-overload, no-any-return]


def _command(contestant: str, plan: Plan, threads: int) -> list[str]:
    launch = [sys.executable, "-m", "benchmarks.launch"]
    if contestant in OURS:
        return [*launch, "kleinserve", "serve", "--port", "0", "--metrics-port", "0", *OURS[contestant]]
    described = ["--model", plan.model, "--device", plan.device, "--dtype", plan.dtype, "--threads", str(threads)]
    return [*launch, MODULES[contestant], *described]


def _settings(plan: Plan) -> dict[str, str]:
    settings = {"model": plan.model, "device": plan.device, "dtype": plan.dtype}
    settings["queue_requests_max"] = str(QUEUE_REQUESTS_MAX)
    return {f"KLEINSERVE_{name.upper()}": value for name, value in settings.items()}


def _threads(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads)} if threads else {}


def _started(process: "subprocess.Popen[str]") -> Serving | None:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(r"serving on ([^\s,]+)(?:, metrics on (\S+))?$", line):
            return Serving(found[1], found[2], process)
    return None
