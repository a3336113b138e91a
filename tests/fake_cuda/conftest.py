"""The walk begins before this folder's other program: each keeps one core busy, and together they take no longer."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kleinserve.engine.checkpoint import MINI

ROOT = Path(__file__).parents[2]
SMALL = f"geometry:{MINI}"
KLEIN, BASE = "geometry:klein-4b", "geometry:klein-base-9b"
WHOLE = [
    f"{SMALL},bfloat16,resident",
    f"{SMALL},float32,resident",
    f"{SMALL},bfloat16,offload",
    f"{SMALL},float32,offload",
    f"{KLEIN},bfloat16,resident",
    f"{BASE},bfloat16,offload",
]
LEFT_ON_THE_HOST, UNORDERED = f"{SMALL},bfloat16,resident,device", f"{SMALL},bfloat16,resident,order"


@pytest.fixture(scope="package")
def walking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["subprocess.Popen[bytes]", Path, Path]]:
    """The walk through all cases, in a process of its own, for it changes torch for good; the files of what it says."""
    out, errors = (tmp_path_factory.mktemp("walk") / name for name in ("out", "errors"))
    command = [sys.executable, "-m", "tests.fake_cuda.walk", *WHOLE, LEFT_ON_THE_HOST, UNORDERED]
    with out.open("w") as told, errors.open("w") as lines:
        process = subprocess.Popen(command, stdout=told, stderr=lines, cwd=ROOT)
    yield process, out, errors
    process.kill()
    process.wait()
