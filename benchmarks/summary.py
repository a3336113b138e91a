"""Rows to numbers: quantiles by class, spreads over the repetitions. What is committed as JSON."""

import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

from benchmarks.load import OK, REFUSED, Outcome
from benchmarks.plan import BURST, DEADLINES, P99_SAMPLES_MIN, PEERS, POISSON, Plan
from benchmarks.run import CAPACITY, Row, outcomes, per_second

Summary: TypeAlias = dict[str, Any]
PACKAGES = ("torch", "diffusers", "transformers", "grpcio", "litserve")


def summarise(rows: list[Row], plan: Plan) -> Summary:
    """Every number of the report. Seconds and bytes; a spread is the least and the most of the repetitions."""
    measured = {row["contestant"] for row in rows if row["load"] in plan.loads}
    names = [name for name in plan.contestants if name in measured]
    capacity = {str(r["repetition"]): round(per_second(r), 3) for r in rows if r["load"] == CAPACITY}
    return {
        "plan": plan.shape | {"repetitions": plan.repetitions},
        "machine": machine(plan),
        "lock_requests_per_second_by_threads": capacity,
        "contestants": {name: _contestant([r for r in rows if r["contestant"] == name], plan) for name in names},
        "pairs": {peer: _pairs(rows, peer, plan) for peer in names if peer in PEERS and "ours" in names},
    }


def _pairs(rows: list[Row], peer: str, plan: Plan) -> Summary:
    """Ours over this peer's, by load: the median of the repetitions' ratios, the least and the most.

    Of a burst requests a second, of other loads the p50 of each class.
    """
    of = {(row["contestant"], row["load"], row["repetition"]): row for row in rows}
    found: Summary = {}
    for load in plan.loads:
        numbers = range(plan.repetitions)
        pairs = [(a, b) for n in numbers if (a := of.get(("ours", load, n))) and (b := of.get((peer, load, n)))]
        if load == BURST:
            found[load] = _ratios([(per_second(a), per_second(b)) for a, b in pairs])
        elif load != DEADLINES:
            found[load] = {
                str(edge): _ratios([(_p50(a, edge), _p50(b, edge)) for a, b in pairs])
                for edge in sorted(set(plan.edges))
            }
    return found


def _p50(row: Row, edge: int) -> float | None:
    seconds = [o.seconds for o in outcomes(row) if o.edge == edge and o.code == OK]
    return quantile(seconds, 0.5) if seconds else None


def _ratios(pairs: Sequence[tuple[float | None, float | None]]) -> Summary | None:
    return _spread([[a / b] for a, b in pairs if a and b], median)


def _contestant(rows: list[Row], plan: Plan) -> Summary:
    by_load = {name: [row for row in rows if row["load"] == name] for name in plan.loads}
    found: Summary = {
        "memory_bytes": max(row["memory_bytes"] for of in by_load.values() for row in of),
        "accelerator_bytes": max(row["accelerator_bytes"] for of in by_load.values() for row in of),
        "loads": {name: _load(of, plan) for name, of in by_load.items() if of},
    }
    if by_load.get(BURST):
        found["requests_per_second_at_saturation"] = _spread([[per_second(r)] for r in by_load[BURST]], median)
    if by_load.get(DEADLINES):
        found["deadlines"] = _deadlines(by_load[DEADLINES])
    return found


def _load(rows: list[Row], plan: Plan) -> Summary:
    every = [outcomes(row) for row in rows]
    answered = [[o for o in repetition if o.code == OK] for repetition in every]
    found: Summary = {
        "requests": sum(map(len, every)),
        "answered": sum(map(len, answered)),
        "refused": sum(o.code == REFUSED for repetition in every for o in repetition),
        "requests_per_second": _spread([[per_second(row)] for row in rows], median),
        "mean_seconds": _spread([[o.seconds for o in of] for of in answered], mean),
        "first_preview_seconds": _spread([_first_previews(of) for of in answered], median),
        "sent_late_seconds_max": max(o.sent_late_seconds for repetition in every for o in repetition),
        "classes": {},
        "stage_seconds": {s: round(sum(r["stages"][s] for r in rows), 3) for s in rows[0].get("stages", {})},
    }
    for edge in sorted(set(plan.edges)):
        seconds = [[o.seconds for o in of if o.edge == edge] for of in answered]
        found["classes"][str(edge)] = _class(seconds)
    return found


def _class(seconds: list[list[float]]) -> Summary:
    count = sum(map(len, seconds))
    tail = 99 if count >= P99_SAMPLES_MIN else 95
    return {
        "samples": count,
        "p50": _spread(seconds, lambda x: quantile(x, 0.5)),
        f"p{tail}": _spread(seconds, lambda x: quantile(x, tail / 100)),
    }


def _deadlines(rows: list[Row]) -> Summary:
    """Of what was admitted, the share that met its deadline; finished within it, a second."""
    every = [outcomes(row) for row in rows]
    return {
        "met_of_admitted": _spread([[_met(of)] for of in every], mean),
        "admitted_of_offered": mean(o.code != REFUSED for of in every for o in of),
        "goodput_per_second": _spread([[per_second(row)] for row in rows], median),
    }


def _met(found: list[Outcome]) -> float:
    admitted = [o.code == OK for o in found if o.code != REFUSED]
    return mean(admitted) if admitted else 0.0


def _first_previews(found: Iterable[Outcome]) -> list[float]:
    return [o.first_preview_seconds for o in found if o.first_preview_seconds is not None]


def _spread(groups: list[list[float]], of: Callable[[Sequence[float]], float]) -> Summary | None:
    """`of` all groups together, and the least and most of single groups."""
    filled = [group for group in groups if group]
    if not filled:
        return None
    each = [of(group) for group in filled]
    together = of([value for group in filled for value in group])
    return {"value": round(together, 5), "low": round(min(each), 5), "high": round(max(each), 5)}


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest rank's value."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def poisson_loads(summary: Summary) -> list[str]:
    return [name for name in POISSON if any(name in c["loads"] for c in summary["contestants"].values())]


def machine(plan: Plan) -> Summary:
    """What measured, for the reader to judge; the load average tells whether something else ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    found: Summary = {"processor": model, "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)}
    if plan.device != "cpu":
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found["accelerator"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    found["python"] = platform.python_version()
    return found | {name: known for name in PACKAGES if (known := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
