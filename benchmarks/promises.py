"""What a proof found, beside what was promised: one line a figure, and an exit code."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A number, with the most or the least that was promised of it where something was."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def is_kept(self) -> bool:
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        said = f"{self.name}: {self.value:.4g}{unit}"
        for bound, word in ((self.most, "at most"), (self.least, "at least")):
            if bound is not None:
                said += f" ({word} {bound:g}{unit}: {'kept' if self.is_kept else 'BROKEN'})"
        return said


def report(figures: Sequence[Figure], file: Path | None = None) -> int:
    """Print them, keep them as JSON where a file is given. Returns the exit code: 1 if a promise is broken."""
    for figure in figures:
        print(figure)
    busy = f"load average of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(busy, flush=True)
    if file is not None:
        found = {figure.name: asdict(figure) for figure in figures}
        file.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return int(not all(figure.is_kept for figure in figures))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share is not above; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
