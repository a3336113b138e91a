"""Two checkouts of this repository on one machine, in turn: throughput on the mixed trace, lone latency.

    .venv/bin/python -m benchmarks.pairs OLD NEW [--pairs 6]

A pair is OLD and NEW one after the other, in alternating order, so that a machine that drifts is no one's advantage.
Prints medians with their least and most, and the medians of the pairs' ratios.
"""

import argparse
import asyncio
import signal
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import trace
from benchmarks.load import OK, closed_loop
from benchmarks.promises import Figure, report, told
from benchmarks.serving import Serving, ours

EDGES = (64, 128, 256)
LONE_EDGES = (64, 256)
CLIENTS = 12


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    given = _arguments()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(given.pairs):
        measured = {}
        for which in ("old", "new")[:: 1 if number % 2 == 0 else -1]:
            measured[which] = _measured(getattr(given, which).resolve(), given, number)
        for name in measured["old"]:
            found[name].append((measured["old"][name], measured["new"][name]))
            print(f"pair {number}, {name}: old {found[name][-1][0]:.4g}, new {found[name][-1][1]:.4g}", flush=True)
    return report(told([figure for name, pairs in found.items() for figure in _figures(name, pairs)]), given.json)


def _measured(checkout: Path, given: argparse.Namespace, seed: int) -> dict[str, float]:
    with TemporaryDirectory() as folder, ours(Path(folder) / "server.log", checkout) as server:
        return asyncio.run(_of(server, given.seconds, given.lone, seed))


async def _of(server: Serving, seconds: float, lone: int, seed: int) -> dict[str, float]:
    await closed_loop(server.target, trace.each_class(EDGES, 2, 1), 1)
    done = await closed_loop(server.target, trace.burst(round(100 * seconds), EDGES, 100 + seed), CLIENTS, seconds)
    served = [outcome for outcome in done if outcome.code == OK and outcome.at_seconds + outcome.seconds <= seconds]
    found = {"images/s in a closed loop": len(served) / seconds}
    for edge in LONE_EDGES:
        alone = await closed_loop(server.target, trace.alone(edge, lone, 200 + seed), 1)
        found[f"seconds of one {edge}² alone"] = median(outcome.seconds for outcome in alone)
    return found


def _figures(name: str, pairs: list[tuple[float, float]]) -> list[Figure]:
    """Medians with the least and the most of each side, and of the ratios."""
    columns = {
        "old": [old for old, _ in pairs], "new": [new for _, new in pairs], "new over old": [b / a for a, b in pairs]
    }  # fmt: skip
    return [
        Figure(f"{name}, {side}{spread}", take(values))
        for side, values in columns.items()
        for spread, take in (("", median), (", least", min), (", most", max))
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a closed loop")
    parser.add_argument("--lone", type=int, default=20, help="images of each size alone")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
