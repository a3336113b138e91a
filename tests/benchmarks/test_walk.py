"""The walk through the server, which docs/ARCHITECTURE.md tells the counts of."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_way_of_one_image() -> None:
    """A generation and an edit pass the six files of the page, and an edit passes its references besides."""
    page = (ROOT / "docs/ARCHITECTURE.md").read_text()
    told = re.findall(r"^\d\. `(\S+\.py)`", page, re.MULTILINE)
    assert len(told) == 6
    command = [sys.executable, "-m", "benchmarks.walk", "-v"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, generation, edit = re.split(r"^(?:generation|edit): \d+ files, \d+ functions$", done.stdout, flags=re.MULTILINE)
    passed = [set(re.findall(r"^  /(\S+\.py):\d+ ", walk, re.MULTILINE)) for walk in (generation, edit)]
    assert all(set(told) <= files for files in passed)
    assert "codec/intake.py" in passed[1] - passed[0]
