"""The proofs of load in short: they run to their end and tell every figure. How good those are, a full run says."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.promises import Figure, quantile, report

ROOT = Path(__file__).resolve().parents[2]
PROOFS = {
    "pairs": (str(ROOT), str(ROOT), "--pairs", "1", "--seconds", "5", "--lone", "1"),
    "overload": ("--seconds", "2", "--capacity-seconds", "2", "--crowd", "16"),
    "flood": ("--seconds", "1", "--size", "0.01"),
    "soak": ("--minutes", "0.05", "--capacity-seconds", "2"),
}
AT_ONCE = 2  # half of the time servers start, on one core
Figures = dict[str, dict[str, Any]]
Proof = Callable[[str], Figures]
pytestmark = pytest.mark.timeout(1200)  # a minute and a half where nothing else computes


@pytest.fixture(scope="module")
def proof(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    """The figures that a proof tells; all that are asked for run from the beginning, some at once."""
    folder, asked = tmp_path_factory.mktemp("proofs"), {item.name for item in request.session.items}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun: dict[str, Future[Figures]] = {
            name: pool.submit(proven, name, folder / f"{name}.json") for name in PROOFS if f"test_{name}" in asked
        }
        yield lambda name: begun[name].result()


def proven(name: str, file: Path) -> Figures:
    command = [sys.executable, "-m", f"benchmarks.{name}", *PROOFS[name], "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode in (0, 1)  # 1: a promise is broken, as it may be on a busy machine
    figures: Figures = json.loads(file.read_text())
    for told in figures:
        assert told in done.stdout
    return figures


def test_overload(proof: Proof) -> None:
    """Every arrival is served, refused or past its deadline, and every client of the crowd is served or refused."""
    found = proof("overload")
    assert found["capacity"]["value"] > 0
    assert found["ends that are none of served, refused and past the deadline"]["value"] == 0
    assert found["clients that end neither served nor refused"]["value"] == 0
    assert 1 <= found["attempts per client, mean"]["value"] <= found["attempts per client, most"]["value"]


def test_flood(proof: Proof) -> None:
    """Healthy callers are served beside hostile files, and each of those is answered."""
    found = proof("flood")
    assert found["64² generations beside the flood, p99"]["value"] > 0
    assert found["memory at the peak"]["value"] >= found["memory before"]["value"] > 100
    answers = [name for name in found if ", alone (" in name]
    assert len(answers) > 10
    assert all("(OK)" in name or "(INVALID_ARGUMENT)" in name for name in answers)


def test_soak(proof: Proof) -> None:
    """Nothing fails under a load with large references, and the memory is followed."""
    found = proof("soak")
    assert found["neither served nor refused"]["value"] == 0
    assert found["memory at the end"]["value"] > 100


def test_pairs(proof: Proof) -> None:
    """A checkout beside itself: both sides and their ratio, with their spread."""
    found = proof("pairs")
    for name in ("images/s in a closed loop", "seconds of one 64² alone", "seconds of one 256² alone"):
        for side in ("old", "new", "new over old"):
            least, middle, most = (found[f"{name}, {side}{part}"]["value"] for part in (", least", "", ", most"))
            assert 0 < least <= middle <= most


def test_a_broken_promise_is_an_exit_code() -> None:
    """Bounds are inclusive; one figure beyond its own breaks the whole."""
    assert report([Figure("a", 1.0, most=1.0), Figure("b", 1.0, least=1.0), Figure("c", 5.0)]) == 0
    assert report([Figure("a", 1.0), Figure("b", 1.1, most=1.0)]) == 1
    assert report([Figure("a", 0.9, least=1.0)]) == 1


def test_quantile() -> None:
    """The value that a share of all lies below."""
    assert quantile(range(100), 0.99) == 99
    assert quantile(range(100), 0.5) == 50
    assert quantile([], 0.5) == 0
