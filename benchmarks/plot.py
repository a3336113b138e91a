"""Latency over load, one line per contestant. Owns matplotlib."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from benchmarks.contestants import TITLES
from benchmarks.summary import Summary, poisson_loads

COLOURS = {"ours": "#1b6ca8", "compiled": "#1e8449", "lock": "#c0392b", "window": "#e08e0b", "framework": "#7d5ba6"}


def latency(summary: Summary, file: Path) -> None:
    """A panel for each size and one for the first preview: p50 solid, the tail dashed, over the Poisson loads."""
    loads, edges = poisson_loads(summary), sorted(set(summary["plan"]["edges"]))
    figure, panels = plt.subplots(1, len(edges) + 1, figsize=(4 * (len(edges) + 1), 3.6), layout="constrained")
    for name, found in summary["contestants"].items():
        known = [(int(load), found["loads"][load]) for load in loads if load in found["loads"]]
        style = {"color": COLOURS[name], "marker": "o", "markersize": 3}
        for panel, edge in zip(panels, edges, strict=False):
            for quantiles, line in ((("p50",), "-"), (("p99", "p95"), "--")):
                points = [(x, of["classes"][str(edge)]) for x, of in known]
                drawn = [(x, c[q]["value"] * 1e3) for x, c in points for q in quantiles if c.get(q)]
                panel.plot(*zip(*drawn, strict=True), line, label=TITLES[name] if line == "-" else None, **style)
        previews = [(x, of["first_preview_seconds"]) for x, of in known if of["first_preview_seconds"]]
        panels[-1].plot([x for x, _ in previews], [p["value"] * 1e3 for _, p in previews], **style)
    titles = [f"{edge}²: p50, and the tail dashed" for edge in edges] + ["time to first preview, p50"]
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="load, % of the lock's capacity", yscale="log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("ms")
    lines, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
