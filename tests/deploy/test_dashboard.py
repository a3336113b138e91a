"""The dashboard's queries, run by a real Prometheus that scrapes a real server under a mixed load."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from klein.v1 import image_pb2_grpc
from kleinserve.identity.callers import token_digest

from tests.deploy.prometheus import DEPLOY, Prometheus, scraping
from tests.e2e.calls import edit, generate, opened, png
from tests.e2e.conftest import Serving, served

BOARD = json.loads((DEPLOY / "grafana/klein.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
CALLERS = f"""
[callers.web]
token_sha256 = ["{token_digest("webs")}"]
[callers.batch]
token_sha256 = ["{token_digest("batches")}"]
requests_max = 1
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Prometheus]]:
    """A server with callers and a ledger, and the Prometheus that scrapes it."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "callers.toml").write_text(CALLERS)
    settings = {"KLEINSERVE_LEDGER": f"sqlite:///{folder}/usage.db"}
    with (
        served("--callers", str(folder / "callers.toml"), **settings) as server,
        scraping(folder, [server.metrics]) as prometheus,
    ):
        yield server, prometheus


async def mixed_load(stub: Any, number: int) -> None:
    """What happens in a real hour: sizes, edits, keys used again, deadlines, cancels, refusals, strangers."""
    web, batch, nobody = ((("authorization", f"Bearer {token}"),) for token in ("webs", "batches", "guessed"))
    key = f"key-{number}"
    calls = [
        stub.Generate(generate(1), metadata=web),
        stub.Generate(generate(2, (128, 64)), metadata=web, timeout=60),
        stub.Generate(generate(3, (256, 256)), metadata=web, timeout=0.05),
        stub.Generate(generate(4, idempotency_key=key), metadata=web),
        stub.Generate(generate(4, idempotency_key=key), metadata=web),
        stub.Edit(edit([png()]), metadata=web),
        stub.Edit(edit([b"no image"]), metadata=web),
        stub.Generate(generate(5), metadata=batch),
        stub.Generate(generate(6), metadata=batch),
        stub.Generate(generate(7), metadata=nobody),
    ]
    leaving = stub.Generate(generate(8, steps=50), metadata=web)
    await leaving.read()
    leaving.cancel()
    await asyncio.gather(*map(drained, calls))


async def drained(call: Any) -> None:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError:
        pass


def expression(target: dict[str, Any]) -> str:
    """A panel's query, with Grafana's variables as it would put them."""
    return target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")


async def test_every_query_has_data(watched: tuple[Serving, Prometheus]) -> None:
    """Under a mixed load every panel's every query returns numbers, and no alert fires."""
    server, prometheus = watched
    missing = {expression(target): panel["title"] for panel in PANELS for target in panel["targets"]}
    ends, number = time.monotonic() + 120, 0
    async with opened(server.target) as channel:
        while missing and time.monotonic() < ends:
            await mixed_load(image_pb2_grpc.ImageServiceStub(channel), number := number + 1)
            for query in list(missing):
                found = await asyncio.to_thread(prometheus.query, query)
                if any(re.fullmatch(r"[-+.e\d]+", each["value"][1]) for each in found):
                    del missing[query]
    assert missing == {}
    alerts = (await asyncio.to_thread(prometheus.get, "/api/v1/alerts"))["alerts"]
    assert [alert for alert in alerts if alert["state"] == "firing"] == []


async def test_variables(watched: tuple[Serving, Prometheus]) -> None:
    """The dashboard's list of servers is made of what is scraped."""
    server, prometheus = watched
    (variable,) = [each for each in BOARD["templating"]["list"] if each["type"] == "query"]
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert found is not None
    assert {each["metric"][found[2]] for each in prometheus.query(found[1])} == {server.metrics}


def test_layout() -> None:
    """Panels do not overlap, and each has a title of its own, a unit and a legend."""
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells
        assert at["x"] + at["w"] <= 24
        cells |= taken
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    assert all(target["legendFormat"] for panel in PANELS for target in panel["targets"])


def test_metrics_are_shown() -> None:
    """Every metric of the contract is on the dashboard, but for those that say the same in other words."""
    from kleinserve.metrics import Metrics

    exposed = {line.split()[2] for line in Metrics().exposition().decode().splitlines() if line.startswith("# TYPE")}
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    unshown = {name for name in exposed if name not in shown}
    assert unshown <= {
        "klein_build_info",
        "klein_compile_state",  # its alert is
        "klein_kept_results",
        "grpc_server_started_total",
        "grpc_server_handling_seconds",
    }
