"""A real Prometheus (Debian's package `prometheus`) that scrapes servers on this machine."""

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.debian import program

DEPLOY = Path(__file__).parents[2] / "deploy"


@dataclass(frozen=True)
class Prometheus:
    """`url`: of its HTTP API."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's vector: each with `metric` and `value`."""
        found = self.get("/api/v1/query", query=expression)
        assert found["resultType"] == "vector"
        return list(found["result"])


@contextmanager
def scraping(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """A Prometheus with deploy's configuration and rules, which scrapes these targets every second."""
    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(DEPLOY / "prometheus/klein.rules.yml")]
    settings["scrape_configs"][0]["static_configs"][0]["targets"] = list(targets)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = {"config.file": file, "storage.tsdb.path": folder / "data", "web.listen-address": address}
    command = [
        program("prometheus", "prometheus"),
        "--log.level=error",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    with subprocess.Popen(command) as process:
        try:
            prometheus = Prometheus(f"http://{address}")
            _wait_for(prometheus, process)
            yield prometheus
        finally:
            process.terminate()


def _wait_for(prometheus: Prometheus, process: "subprocess.Popen[bytes]") -> None:
    """Until it answers; it has nothing that could be awaited."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        try:
            prometheus.query("vector(1)")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("Prometheus does not answer")
