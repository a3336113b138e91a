"""Every CUDA path walked without a GPU: devices, copies, dtypes and the order of streams, by fake tensors.

Covers the device code of engine/: load, offload, text, references, steps, previews, decode, alpha.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.conftest import BASE, LEFT_ON_THE_HOST, SMALL, UNORDERED, WHOLE

STEPS = ("first step", "next step", "other rows", "last step", "second step")
Case = dict[str, Any]
pytestmark = pytest.mark.timeout(1200)  # a minute where nothing else computes


@pytest.fixture(scope="module")
def walks(walking: tuple["subprocess.Popen[bytes]", Path, Path]) -> dict[str, Case]:
    process, out, errors = walking
    assert process.wait() == 0, errors.read_text()[-3000:]
    seen: dict[str, Case] = json.loads(out.read_text().splitlines()[-1])
    return seen


@pytest.fixture(params=WHOLE)
def case(request: pytest.FixtureRequest, walks: dict[str, Case]) -> Case:
    seen = walks[request.param]
    seen["model"], seen["dtype"], seen["kept"] = request.param.split(",")
    return seen


def test_no_operator_mixes_devices(case: Case) -> None:
    """Only attention, which means to, sees tensors of host and device at once."""
    assert {name: stage["mixed"] for name, stage in case["stages"].items() if stage["mixed"]} == {}


def test_no_stream_reads_what_another_may_still_write(case: Case) -> None:
    """Whatever one stream reads of another's, somebody has waited for that one before."""
    assert {name: stage["unordered"] for name, stage in case["stages"].items() if stage["unordered"]} == {}


def test_nothing_is_copied_in_a_step(case: Case) -> None:
    """A step copies nothing to the host, and to the device only the sequences' ends, when its set of rows changes."""
    stages = case["stages"]
    steps = {name: stages[name] for name in STEPS if name in stages}
    assert all(stage["to_host"] == [] and stage["weights"] == 0 for stage in steps.values())
    assert steps.pop("next step")["to_device"] == []
    for stage in steps.values():
        [[shape, dtype]] = stage["to_device"]
        assert (len(shape), dtype) == (1, "int32")


def test_what_is_copied_at_every_other_stage(case: Case) -> None:
    """Ids and mask of each prompt; noise and references; pictures come out in 8 bits, but where two are compared."""
    stages, dtype = case["stages"], case["dtype"]
    is_native, is_guided = case["model"] == SMALL, case["model"] == BASE
    channels, latents = (4, 32) if is_native else (3, 128)
    tokens = 40 if is_native else 512
    assert stages["text"]["to_device"] == [[[1, tokens], "int64"]] * 2 * (3 + is_guided)
    assert stages["text again"]["to_device"] == []
    assert sorted(stages["begin"]["to_device"]) == sorted(
        [
            [[64, latents], "float32"],
            [[1, channels, 64, 64], dtype],
            [[1, channels, 64, 96], dtype],
            [[48, latents], "float32"],
            [[64, latents], "float32"],
        ]
    )
    for name in ("text", "text again", "begin", "begin second"):
        assert stages.get(name, {"to_host": []})["to_host"] == []
    for name in ("previews", "decode", "decode tiled", "decode cut-out"):
        assert stages[name]["to_device"] == []
    assert sorted(stages["previews"]["to_host"]) == sorted(
        [[[1, 16, 16, 3], "uint8"], [[1, 16, 12, 3], "uint8"], [[1, 16, 16, channels], "uint8"]]
    )
    assert stages["decode"]["to_host"] == [[[1, 128, 128, 3], "uint8"]]
    assert stages["decode tiled"]["to_host"] == [[[1, 128, 96, 3], "uint8"]]
    cut_out = [[1, 128, 128, 4], "uint8"] if is_native else [[1, 128, 128, 3], "float32"]
    assert stages["decode cut-out"]["to_host"] == [cut_out]


def test_weights_move_only_when_offloaded_and_only_there(case: Case) -> None:
    """Offloaded, text encoder and VAE are copied to the device once for each use, and never back."""
    is_offloaded, bytes_of = case["kept"] == "offload", case["weights"]
    moved = {name: stage["weights"] for name, stage in case["stages"].items() if stage["weights"]}
    vae = ("begin", "decode", "decode tiled", "decode cut-out", "begin second")
    expected = {"text": bytes_of["text"]} | {name: bytes_of["vae"] for name in vae if name in case["stages"]}
    if "begin second" in expected:
        expected["begin second"] += bytes_of["text"]
    assert moved == (expected if is_offloaded else {})


def test_stages_compute_in_the_models_dtype(case: Case) -> None:
    """Weights are multiplied in the model's dtype everywhere, the previews' map in float32."""
    for name, stage in case["stages"].items():
        assert set(stage["dtypes"]) <= {"float32" if name == "previews" else case["dtype"]}, name
    assert case["stages"]["next step"]["dtypes"] == [case["dtype"]]


def test_the_walk_notices_what_is_broken(walks: dict[str, Case]) -> None:
    """A tensor left on the host is found where it is used; so is a stream that nobody waits for."""
    left = {name: stage["mixed"] for name, stage in walks[LEFT_ON_THE_HOST]["stages"].items() if stage["mixed"]}
    assert {"begin", "previews", "decode"} <= set(left)
    unordered = {name for name, stage in walks[UNORDERED]["stages"].items() if stage["unordered"]}
    assert {"first step", "decode"} <= unordered
