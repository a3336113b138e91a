"""Who is measured, and how each is started. Knows no trace."""

import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.plan import Plan
from benchmarks.serving import ROOT, Serving, started

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


def serving(contestant: str, plan: Plan, threads: int, log: Path) -> AbstractContextManager[Serving]:
    """The contestant, ready; its standard error goes to `log`. Raises: RuntimeError if it does not start."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    environment |= _settings(plan) if contestant in OURS else _threads(threads)
    return started(_command(contestant, plan, threads), environment, log)


def _command(contestant: str, plan: Plan, threads: int) -> list[str]:
    launch = [sys.executable, "-m", "benchmarks.launch"]
    if contestant in OURS:
        ports = ["--port", "0", "--metrics-port", "0"]
        return [*launch, "kleinserve", "serve", *ports, "--ledger", "none", *OURS[contestant]]
    described = ["--model", plan.model, "--device", plan.device, "--dtype", plan.dtype, "--threads", str(threads)]
    return [*launch, MODULES[contestant], *described]


def _settings(plan: Plan) -> dict[str, str]:
    settings = {"model": plan.model, "device": plan.device, "dtype": plan.dtype}
    settings["queue_requests_max"] = str(QUEUE_REQUESTS_MAX)
    return {f"KLEINSERVE_{name.upper()}": value for name, value in settings.items()}


def _threads(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads)} if threads else {}
