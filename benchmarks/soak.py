"""Minutes of mixed load at 80 % of what the server can do, large references among it: does its memory grow?

    .venv/bin/python -m benchmarks.soak [--minutes 30]

Prints what the server and its workers hold by the minute, and the slopes of the last half.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

from benchmarks import trace
from benchmarks.load import OK, REFUSED, Outcome, closed_loop, open_loop
from benchmarks.promises import Figure, report, told
from benchmarks.serving import MIB, Serving, ours

EDGES = (64, 128, 256)
LOAD = 0.8
CLIENTS = 12  # of the closed loop that finds the capacity
LARGE_EVERY, LARGE_EDGES = 25, (1024, 1536, 2048)  # of arrivals: edits whose references are large
KEYED_EVERY = 2
KEPT_BYTES = 64 * MIB  # an eighth for the one caller there is
CACHE_BYTES = 8 * MIB  # of prompts and of references; by default 256 MiB each, which would take hours to fill
SAMPLE_SECONDS = 1.0
SLOPE_MOST = 1.0  # MiB a minute
SEGMENT_SECONDS = 60.0  # its arrivals are made when it begins, so that the load's own memory stays small


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    given = _arguments()
    with TemporaryDirectory() as folder, _ours(folder) as server:
        figures = told(asyncio.run(soak(server, given.minutes * 60, given.capacity_seconds)))
    return report(figures, given.json)


def _ours(folder: str) -> AbstractContextManager[Serving]:
    """With a ledger, and little room for what is kept and cached, so that it is full within the first half."""
    return ours(
        Path(folder) / "server.log",
        ledger=f"sqlite:///{folder}/usage.db",
        kept_bytes_max=KEPT_BYTES,
        kept_seconds=60,
        prompt_cache_bytes_max=CACHE_BYTES,
        reference_cache_bytes_max=CACHE_BYTES,
    )


async def soak(server: Serving, seconds: float, capacity_seconds: float) -> list[Figure]:
    """The memory of `seconds` of load."""
    larges = [trace.picture(edge, edge) for edge in LARGE_EDGES]
    await closed_loop(server.target, trace.each_class(EDGES, 1, 1), 1)
    mixed = _mixed(trace.burst(round(100 * capacity_seconds), EDGES, 2), larges)
    done = await closed_loop(server.target, mixed, CLIENTS, capacity_seconds)
    rate = LOAD * sum(outcome.code == OK for outcome in done) / max(o.at_seconds + o.seconds for o in done)
    print(f"{rate:.2f} arrivals a second for {seconds / 60:.1f} minutes", flush=True)
    sampling = asyncio.create_task(_samples(server, seconds))
    found: list[Outcome] = []
    segments = max(1, round(seconds / SEGMENT_SECONDS))
    for seed in range(segments):
        count = max(1, round(rate * seconds / segments))
        found += await open_loop(server.target, _mixed(trace.poisson(rate, count, EDGES, 10 + seed), larges))
    held = await sampling
    minutes = []
    for minute in range(max(1, int(held[-1][0] // 60))):  # whole ones: the last sample alone is no minute
        if of := [bytes_ / MIB for at, bytes_ in held if minute * 60 <= at < (minute + 1) * 60]:
            minutes.append((mean(of), min(of)))
            print(f"minute {minute}: {minutes[-1][0]:.0f} MiB, at the least {minutes[-1][1]:.0f}")
    means, least = zip(*minutes, strict=True)
    return [
        Figure("requests", len(found)),
        Figure("neither served nor refused", sum(o.code not in (OK, REFUSED) for o in found), most=0),
        Figure("served, of all", sum(o.code == OK for o in found) / len(found)),
        Figure("memory at the end", held[-1][1] / MIB, "MiB"),
        Figure("memory's slope in the last half", _slope(means), "MiB/min", most=SLOPE_MOST),
        # What is under way comes and goes by tens of MiB, which hides a slope of one; what stays lifts the least too.
        Figure("the slope of each minute's least", _slope(least), "MiB/min", most=SLOPE_MOST),
    ]


def _slope(minutes: Sequence[float]) -> float:
    """Theil and Sen's, of the last half: one minute of large references that came together is no growth."""
    last = list(enumerate(minutes))[len(minutes) // 2 :]
    return median([(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(last, 2)] or [0.0])


async def _samples(server: Serving, seconds: float) -> list[tuple[float, int]]:
    """Seconds since the start, and what is held then."""
    clock = asyncio.get_running_loop().time
    start, found = clock(), []
    while not found or found[-1][0] < seconds:
        found.append((clock() - start, await asyncio.to_thread(server.held_bytes)))
        await asyncio.sleep(min(SAMPLE_SECONDS, seconds / 10))
    return found


def _mixed(arrivals: Sequence[trace.Arrival], larges: Sequence[bytes]) -> list[trace.Arrival]:
    """Every 25th is an edit with a large reference; every second has a key, of edits too."""
    with_large = [
        replace(arrival, prompt="make it green", reference=larges[i // LARGE_EVERY % len(larges)])
        if i % LARGE_EVERY == LARGE_EVERY // 2
        else arrival
        for i, arrival in enumerate(arrivals)
    ]
    return trace.with_keys(with_large, KEYED_EVERY)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--capacity-seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
