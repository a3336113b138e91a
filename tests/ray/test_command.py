"""`kleinserve serve --backend ray` (backend/ray/cluster.py)."""

import asyncio
import os
import subprocess
import sys

import psutil
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import generate, opened, until
from tests.e2e.conftest import served
from tests.ray.cluster import Cluster

SERVE = [sys.executable, "-m", "kleinserve", "serve", "--backend", "ray", "--ledger", "none"]


async def test_a_cluster_of_its_own() -> None:
    """It starts Ray, serves, lets what runs end after SIGTERM, exits with 0, and leaves no process."""
    with served("--backend", "ray", KLEINSERVE_THREADS="1") as server:
        started = psutil.Process(server.process.pid).children(recursive=True)
        async with opened(server.target) as channel:
            call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(steps=50))
            await until(call, "progress")
            server.process.terminate()
            await until(call, "completed")
        assert await asyncio.to_thread(server.process.wait, 60) == 0
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []


def test_no_such_cluster() -> None:
    """An address where no Ray is is one line and code 2."""
    done = subprocess.run([*SERVE, "--ray-address", "127.0.0.1:1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr.splitlines()[-1]


def test_served_already(deployed: Cluster) -> None:
    """A second command for one cluster is one line and code 2; what runs there goes on."""
    words = [*SERVE, "--ray-address", deployed.address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "klein is served by this cluster already" in done.stderr.splitlines()[-1]
    assert len(deployed.actors("Replica")) == 2


def test_no_place_for_fronts() -> None:
    """More fronts than nodes that may have one is one line and code 2: Ray would wait for ever."""
    environment = os.environ | {"KLEINSERVE_FRONTS": "2"}
    done = subprocess.run(SERVE, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "2 fronts need as many nodes with the resource `front`: 1" in done.stderr.splitlines()[-1]


def test_no_such_model() -> None:
    """What keeps replicas from starting is one line with their reason, and code 2."""
    done = subprocess.run([*SERVE, "--model", "/nonexistent"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "/nonexistent" in done.stderr.splitlines()[-1]
