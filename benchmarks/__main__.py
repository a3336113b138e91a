"""`python -m benchmarks quick | full | gpu | tiny`: measure, print the tables, keep them."""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from benchmarks import stand_ins

ROOT = Path(__file__).resolve().parent.parent
stand_ins.install(ROOT)

from benchmarks import contestants, geometry, report, summary  # noqa: E402 - after what an image may lack is stood in for
from benchmarks.plan import ALONE, BURST, DEADLINES, FULL, GPU, POISSON, QUICK, TINY, Plan  # noqa: E402
from benchmarks.run import Bench  # noqa: E402

FOLDER = ROOT / "bench"
PLANS = {plan.name: plan for plan in (QUICK, FULL, GPU, TINY)}
NEVER_SPLIT = ("quick", "gpu", "tiny")  # one run each: what an earlier one left is dropped


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the contestants are stopped too
    given = _arguments()
    plan = _plan(given)
    if given.fresh or plan.name in NEVER_SPLIT:
        for suffix in ("jsonl", "packed.json"):
            (given.folder / f"{plan.name}.{suffix}").unlink(missing_ok=True)
    given.folder.mkdir(parents=True, exist_ok=True)
    packed = _packed(given.folder / f"{plan.name}.packed.json") if plan.name in ("quick", "full") else {}
    rows = Bench(plan, given.folder, lambda line: print(line, flush=True)).run()
    found = summary.summarise(rows, plan) | {"engine_alone": packed}
    text = report.markdown(found)
    (given.folder / f"{plan.name}.md").write_text(text)
    (given.folder / f"{plan.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)
    if plan.name == "full" and given.folder == FOLDER:
        _publish(text, found)


def _packed(file: Path) -> summary.Summary:
    """Packed stepping and the server's overhead, measured in a process of its own unless they are known."""
    if not file.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.packed", str(file)], check=True)
    return dict(json.loads(file.read_text()))


def _publish(text: str, found: summary.Summary) -> None:
    """The committed table, numbers and plot."""
    from benchmarks import plot

    report.into_document(ROOT / "docs/PERF.md", text)
    (ROOT / "docs/bench.json").write_text(json.dumps(found, indent=1) + "\n")
    plot.latency(found, ROOT / "docs/latency.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="rows, logs and tables (bench/)")
    parser.add_argument("--fresh", action="store_true", help="drop what an earlier full run has measured")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--requests", type=int, help="of one Poisson repetition")
    parser.add_argument("--contestants", type=_names(contestants.TITLES), help=f"of {', '.join(contestants.TITLES)}")
    loads = [ALONE, *POISSON, BURST, DEADLINES]
    parser.add_argument("--loads", type=_names(loads), help=f"of {', '.join(loads)}")
    parser.add_argument("--device", help="of gpu: cuda, or cpu with a reduced geometry, which measures nothing")
    return parser.parse_args()


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an argument that lists some of these."""

    def names(listed: str) -> tuple[str, ...]:
        found = tuple(listed.split(","))
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(map(repr, unknown))}: there are {', '.join(known)}")
        return found

    return names


def _plan(given: argparse.Namespace) -> Plan:
    names = ("repetitions", "requests", "contestants", "loads")
    plan = replace(PLANS[given.plan], **{name: value for name in names if (value := getattr(given, name)) is not None})
    if plan.name != "gpu" or (given.device or _device()) != "cpu":
        return plan
    print("no GPU: a reduced geometry on the CPU, which shows that this runs and measures nothing", flush=True)
    model = geometry.write(given.folder.resolve() / "reduced")
    names = ("edges", "requests", "burst", "alone_edge", "alone")
    small = replace(plan, starts_together=True, **{name: getattr(TINY, name) for name in names})
    return replace(small, model=model, device="cpu", dtype="float32")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
