"""Ray on this machine as two machines, each with a front, and what an operator deploys there, by REST."""

import json
import os
import re
import secrets
import signal
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.replicas.cluster import free_port

START_SECONDS = 240.0
CPUS = 4  # of each node, by name only: a replica takes one
PORTS = {"port": 0, "metrics_port": 0, "replica_metrics_port": 0}
SETTINGS = PORTS | {"replicas": "2:2", "fronts": 2, "threads": 1, "max_steps": 5000}


@dataclass(frozen=True)
class Actor:
    """A process that Ray started for us."""

    name: str
    pid: int
    worker: str

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def memory(self) -> int:
        """Bytes that it has for itself: what it shares with others (libraries, Ray's store) is not counted."""
        return int(psutil.Process(self.pid).memory_full_info().uss)


class Cluster:
    """Two nodes. `address`: of the head, for a driver. `ledger`: of what is deployed there."""

    def __init__(self, nodes: Any, dashboard: int, folder: str, ledger: str):
        self._nodes, self._url = nodes, f"http://127.0.0.1:{dashboard}/api/serve/applications/"
        self._folder, self._ledger = folder, ledger
        self.address: str = nodes.address
        self._logs = Path(nodes.head_node.get_logs_dir_path())

    def deploy(self, *, options: object = (), **settings: object) -> None:
        """Ask for the application with SETTINGS and these; `options` of its deployments. Returns before it is so."""
        settings = SETTINGS | {"ledger": self._ledger} | settings
        application = {"name": "klein", "import_path": "kleinserve.app:application", "args": settings}
        asked = {"proxy_location": "Disabled", "applications": [application | {"deployments": list(options)}]}  # type: ignore[call-overload]
        self._ask("PUT", json.dumps(asked).encode())

    def delete(self) -> None:
        self._ask("DELETE")

    def _ask(self, method: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, body, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return bytes(response.read())

    def _status(self) -> dict[str, Any]:
        return dict(json.loads(self._ask("GET"))["applications"].get("klein", {}))

    def wait(self) -> None:
        """Until all that is wanted runs."""
        deadline = time.monotonic() + START_SECONDS
        while (status := self._status()).get("status") != "RUNNING":
            assert status.get("status") != "DEPLOY_FAILED", status["message"]
            assert time.monotonic() < deadline, status
            time.sleep(0.3)

    def lose_head(self, seconds: float) -> None:
        """Kill the head's GCS, and start it again after so long."""
        self._nodes.head_node.kill_gcs_server()
        time.sleep(seconds)
        with _kept_in(self._folder):
            self._nodes.head_node.start_gcs_server()

    def actors(self, deployment: str) -> list[Actor]:
        """The processes of `Front` or `Replica` that run."""
        found = self._status().get("deployments", {}).get(deployment, {"replicas": []})
        running = [replica for replica in found["replicas"] if replica["state"] == "RUNNING"]
        return [Actor(replica["replica_id"], replica["pid"], replica["worker_id"]) for replica in running]

    def until_gone(self, deployment: str, names: set[str], count: int) -> None:
        """Wait until so many of a deployment run and none of those named does."""
        deadline = time.monotonic() + START_SECONDS
        while len(left := self.actors(deployment)) != count or names & {actor.name for actor in left}:
            assert time.monotonic() < deadline, left
            time.sleep(0.3)

    def log(self, actor: Actor) -> str:
        """What a process has logged."""
        (file,) = self._logs.glob(f"worker-{actor.worker}-*-{actor.pid}.err")
        return file.read_text()

    def target(self, front: Actor) -> str:
        """Where a front serves, by its own log."""
        return self._logged(front, r"serving on (\S+), metrics on")

    def metrics(self, actor: Actor) -> str:
        """The page of a front or a replica."""
        address = self._logged(actor, r"metrics on ([^\s\"]+)")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/metrics", timeout=10) as response:
            return str(response.read().decode())

    def _logged(self, actor: Actor, pattern: str) -> str:
        found = re.search(pattern, self.log(actor))
        assert found is not None, self.log(actor)
        return found[1]

    def targets(self) -> list[str]:
        return [self.target(front) for front in self.actors("Front")]


@contextmanager
def _kept_in(folder: str) -> Iterator[None]:
    """Where a GCS that is started within keeps its state: no other one may have the same."""
    named = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": folder}
    os.environ |= named
    try:
        yield
    finally:
        for name in named:
            del os.environ[name]


@contextmanager
def cluster(ledger: str) -> Iterator[Cluster]:
    """A cluster with nothing deployed yet, whose GCS keeps its state in a folder; ended by its processes' ids."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster as Nodes

        dashboard = free_port()
        node: dict[str, Any] = {"num_cpus": CPUS, "resources": {"front": 1}}
        head = node | {"node_ip_address": "127.0.0.2", "gcs_server_port": free_port()}
        head |= {"include_dashboard": True, "dashboard_port": dashboard}
        with _kept_in(folder):
            nodes = Nodes(initialize_head=True, head_node_args=head)
        try:
            nodes.add_node(node_ip_address="127.0.0.3", **node)
            yield Cluster(nodes, dashboard, folder, ledger)
        finally:
            nodes.shutdown()
