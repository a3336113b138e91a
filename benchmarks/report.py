"""Numbers to text: the tables of the terminal and of docs/PERF.md. Milliseconds, (least–most) of the repetitions."""

from pathlib import Path
from typing import Any

from benchmarks.contestants import TITLES
from benchmarks.plan import ALONE, BURST, DEADLINES
from benchmarks.summary import Summary, poisson_loads

MIB = 1024 * 1024
OVERHEAD = "one 256²"  # packed.py's name for it
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def markdown(summary: Summary) -> str:
    """Every table of the report."""
    parts = [_machine(summary), _glance(summary), _pairs(summary), _alone(summary)]
    for name in [*poisson_loads(summary), BURST]:
        if any(name in c["loads"] for c in summary["contestants"].values()):
            parts.append(_load(summary, name))
    parts += [_stages(summary), _engine_alone(summary.get("engine_alone", {}))]
    return "\n\n".join(filter(None, parts)) + "\n"


def into_document(document: Path, text: str) -> None:
    """Replace what stands between the document's two marks."""
    before, _, rest = document.read_text().partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


def _machine(summary: Summary) -> str:
    machine, plan = summary["machine"], summary["plan"]
    told = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("processor", "cores"))
    threads = summary["lock_requests_per_second_by_threads"]
    tried = ", ".join(f"{n if int(n) else 'default'}: {rate:.2f}/s" for n, rate in threads.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores; {told}. `{plan['model']}`, {plan['dtype']}; "
        f"{plan['repetitions']} repetitions of {plan['requests']} requests, bursts of {plan['burst']}. "
        f"The lock at saturation by torch threads: {tried}; the better was used for every peer. Milliseconds from the "
        "scheduled arrival, all repetitions together (least–most of single ones)."
    )


def _glance(summary: Summary) -> str:
    head = ["", "requests/s at saturation", "peak memory"]
    has_deadlines = any("deadlines" in c for c in summary["contestants"].values())
    if has_deadlines:
        head += ["deadlines met, of admitted", "admitted", "goodput /s"]
    rows = []
    for name, found in summary["contestants"].items():
        memory = f"{found['memory_bytes'] / MIB:.0f} MiB"
        if found["accelerator_bytes"]:
            memory += f", accelerator {found['accelerator_bytes'] / MIB:.0f} MiB"
        row = [TITLES[name], _cell(found.get("requests_per_second_at_saturation"), 1, 2), memory]
        if has_deadlines:
            of = found.get("deadlines", {})
            admitted = f"{of['admitted_of_offered']:.0%}" if of else "—"
            met = _cell(of.get("met_of_admitted"), 100, 0, " %")
            row += [met, admitted, _cell(of.get("goodput_per_second"), 1, 2)]
        rows.append(row)
    return _table(head, rows)


def _pairs(summary: Summary) -> str:
    """Ours over each peer, measured one after the other."""
    count, loads = summary["plan"]["repetitions"], poisson_loads(summary)
    if count < 2 or not summary["pairs"]:
        return ""
    edges = [str(edge) for edge in sorted(set(summary["plan"]["edges"]))]
    head = ["over", "burst, requests/s", *[f"{load} %, {edge}²" for load in loads for edge in edges]]
    rows = [
        [TITLES[peer], _cell(of.get(BURST), 1, 2), *[_cell(of[load][edge], 1, 2) for load in loads for edge in edges]]
        for peer, of in summary["pairs"].items()
    ]
    told = f"**klein-serve over each peer**: medians of {count} pairs of repetitions, of latencies the p50 (least–most)"
    return f"{told}\n\n{_table(head, rows)}"


def _load(summary: Summary, name: str) -> str:
    edges = sorted(set(summary["plan"]["edges"]))
    head = ["", "mean", *[f"{edge}² {of}" for edge in edges for of in ("p50", "tail")], "first preview p50", "answered"]
    rows = []
    for contestant, found in summary["contestants"].items():
        if (of := found["loads"].get(name)) is None:
            continue
        row = [TITLES[contestant], _cell(of["mean_seconds"])]
        for edge in edges:
            known = of["classes"][str(edge)]
            tail = next(key for key in known if key in ("p95", "p99"))
            row += [_cell(known["p50"]), f"{tail} {_cell(known[tail])}"]
        row += [_cell(of["first_preview_seconds"]), f"{of['answered']} of {of['requests']}"]
        rows.append(row)
    title = "A burst" if name == BURST else f"{name} % of the lock's capacity"
    return f"**{title}**\n\n{_table(head, rows)}"


def _alone(summary: Summary) -> str:
    """One request at a time: end to end, and what its stages took in ours."""
    edge, rows = summary["plan"]["alone_edge"], []
    for contestant, found in summary["contestants"].items():
        if (of := found["loads"].get(ALONE)) is None:
            continue
        told = ", ".join(f"{stage} {_ms(seconds / of['requests'])}" for stage, seconds in of["stage_seconds"].items())
        rows.append(
            [TITLES[contestant], *map(_cell, (of["classes"][str(edge)]["p50"], of["first_preview_seconds"])), told]
        )
    head = ["", "p50", "first preview p50", "of which, on average (step: all four)"]
    return f"**One {edge}² generation alone**\n\n{_table(head, rows)}" if rows else ""


def _stages(summary: Summary) -> str:
    """Where ours spends its time: shares of the seconds that its stages took."""
    loads = summary["contestants"].get("ours", {}).get("loads", {})
    rows = []
    for name, of in loads.items():
        total = sum(of["stage_seconds"].values())
        if total:
            title = {ALONE: "alone", BURST: "burst", DEADLINES: "deadlines, 120 %"}.get(name, f"{name} %")
            rows.append([title, *[f"{seconds / total:.0%}" for seconds in of["stage_seconds"].values()]])
    if not rows:
        return ""
    head = ["", *next(iter(loads.values()))["stage_seconds"]]
    return f"**Where the time goes, {TITLES['ours']}** (shares of `klein_stage_seconds`)\n\n{_table(head, rows)}"


def _engine_alone(measured: dict[str, list[float]]) -> str:
    """Packed stepping, and the server against the bare engine loop; see packed.py."""
    if not measured:
        return ""
    bare, through, over, *where = measured[OVERHEAD]
    ratios = {name: found for name, found in measured.items() if name != OVERHEAD}
    rows = [[name, _ms(a), _ms(b), f"{ratio:.2f}"] for name, (a, b, ratio) in ratios.items()]
    head = ["denoising, engine alone, ms", "one after another", "packed", "ratio"]
    told = f"One 256² request: bare engine loop {_ms(bare)} ms, through the server {_ms(through)} ms"
    told += f", overhead {over * 1e3:.1f} ms."
    if where:  # earlier runs did not say
        told += f" Its stages take {_ms(where[0])} ms on average, a call that draws nothing {where[1] * 1e3:.1f} ms."
    return f"{_table(head, rows)}\n\n{told}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"


def _cell(spread: dict[str, float] | None, factor: float = 1e3, digits: int = 0, unit: str = "") -> str:
    if spread is None:
        return "—"
    value, low, high = (f"{spread[key] * factor:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit}" if low == high else f"{value}{unit} ({low}–{high})"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
