"""PostgreSQL, two servers, Envoy and Prometheus on this machine; a rolling restart under load, and what they say of it.

Everything runs in processes of its own, in folders that are removed at the end.
"""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kleinclient import Client

from benchmarks.cluster import fronts, trials
from tests.debian import program
from tests.replicas.cluster import Server, envoy, free_port, servers

REQUESTS = 100
SCRAPE_SECONDS = 1


def main(ledger: str, folder: Path, settings: Mapping[str, str]) -> int:
    """Exit code 1: something was lost."""
    binary = program("prometheus", "prometheus")
    print("PostgreSQL runs; starting two servers, which takes some seconds …", flush=True)
    begin = datetime.now(UTC)
    with servers(ledger, folder, **settings) as pair, envoy(*pair) as front, prometheus(binary, pair, folder) as page:
        for server in pair:
            print(f"  server {server.name}: {server.target}, metrics on http://{server.metrics}/metrics")
        print(f"  Envoy: {front.target}\n  Prometheus: http://{page}", flush=True)
        print("\nThree callers draw through Envoy while one server after the other is restarted …", flush=True)
        with fronts.library(front.target) as draw:
            result = trials.roll(draw, pair, front, REQUESTS)
        print(f"  {result}")
        time.sleep(3 * SCRAPE_SECONDS)  # until the last counts are scraped
        show(page)
        billed = bills(front.target, begin)
    print(f"\nThe ledger: {billed} images billed, for {result.asked} requests.\nEverything has ended.", flush=True)
    return 0 if not result.failures and billed == result.asked else 1


def bills(target: str, begin: datetime) -> int:
    with Client(target) as klein:
        totals = klein.usage(begin - timedelta(minutes=1), datetime.now(UTC) + timedelta(minutes=1))
    return sum(total.images for total in totals)


def show(page: str) -> None:
    """What Prometheus knows, by server: its counters begin anew where the process did."""
    asked = {
        "requests that ended OK, estimated": 'sum by (instance) (increase(klein_requests_total{code="OK"}[10m]))',
        "refused while draining": 'sum by (instance) (increase(klein_requests_total{reason="DRAINING"}[10m]))',
        "restarts": 'sum by (instance) (resets(klein_requests_total{code="OK"}[10m]))',
        "median seconds of a request": (
            "histogram_quantile(0.5, sum by (instance, le) (rate(klein_request_duration_seconds_bucket[10m])))"
        ),
    }
    print("\nPrometheus, over the whole time:")
    for name, query in asked.items():
        told = [f"{each['metric']['instance']}: {float(each['value'][1]):.3g}" for each in queried(page, query)]
        print(f"  {name}: {', '.join(sorted(told)) or 'none'}")


def queried(page: str, query: str) -> list[dict[str, dict[str, str]]]:
    url = f"http://{page}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
        return list(json.load(response)["data"]["result"])


@contextmanager
def prometheus(binary: str, watched: Sequence[Server], folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes these servers every second; its HOST:PORT, once it is ready."""
    targets = [{"targets": [server.metrics], "labels": {"instance": server.name}} for server in watched]
    scraped = {"job_name": "klein", "scrape_interval": f"{SCRAPE_SECONDS}s", "static_configs": targets}
    file, page = folder / "prometheus.yml", f"127.0.0.1:{free_port()}"
    file.write_text(json.dumps({"scrape_configs": [scraped]}))
    given = [f"--config.file={file}", f"--storage.tsdb.path={folder}/prometheus", f"--web.listen-address={page}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([binary, *given], stdout=log, stderr=log)
    try:
        until_ready(page, process)
        yield page
    finally:
        process.terminate()
        process.wait()


def until_ready(page: str, process: "subprocess.Popen[bytes]") -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(f"http://{page}/-/ready", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError("Prometheus did not start") from None
            time.sleep(0.1)
