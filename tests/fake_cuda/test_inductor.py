"""What is compiled for CUDA, seen without a device: inductor's code for sm_90, by klein 4B's own widths.

Needs triton's wheel (200 MB), which a CPU build of torch comes without: pip puts it in the user's cache, once.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

ROOT = Path(__file__).parents[2]
TRITON = "triton==3.7.1"  # torch 2.13's
KERNELS = {"double, 1 levels": 12, "double, 2 levels": 14, "single, 1 levels": 4, "single, 2 levels": 5}
Made = dict[str, dict[str, Any]]
pytestmark = pytest.mark.timeout(1200)  # half a minute where nothing else computes


@pytest.fixture(scope="module")
def triton() -> Path:
    place = user_cache_path("kleinserve") / TRITON
    if not (place / "triton").is_dir():
        part = place.with_name(f"{TRITON}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part), TRITON]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(part, ignore_errors=True)
            pytest.fail(f"{TRITON} cannot be had here: {done.stderr.strip().splitlines()[-1]}")
        part.rename(place)
    return place


@pytest.fixture(scope="module")
def made(triton: Path, walking: object, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All blocks, in a process of their own: it changes torch for good. No cache of an earlier run helps out."""
    command = [sys.executable, "-m", "tests.fake_cuda.inductor"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("inductor"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(triton), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: Made = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_block_is_few_kernels(made: Made) -> None:
    """What lies between a block's products and its attention is fused into this many kernels, and no more."""
    assert {name: len(block["kernels"]) for name, block in made.items()} == KERNELS
    assert {block["ended"] for block in made.values()} == {"PyTorch compiled without support for the specified device."}


def test_no_length_compiles_again(made: Made) -> None:
    """The code's guards hold for any numbers of text and image tokens, up to 64 Ki in one step."""
    assert {name: block["refused"] for name, block in made.items() if block["refused"]} == {}
