"""What is not a checkpoint is refused in one line; what is tells its facts itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kleinserve.config import Config
from kleinserve.core import AlphaMethod, Size, Variant
from kleinserve.engine import checkpoint
from kleinserve.engine.engine import Engine
from kleinserve.errors import UnusableCheckpoint

from tests.engine.checkpoints import klein


def test_facts_come_from_the_checkpoint(tmp_path: Path) -> None:
    """A base layout of 3 channels: guidance 4, 50 steps, its VAE's sample size, cut-outs by difference or key."""
    layout = checkpoint.find(str(klein(tmp_path, is_distilled=False)))
    facts = Engine(layout, Config(threads=1)).facts
    assert layout.text_layers == (2, 4, 6)
    assert (facts.variant, facts.default_steps, facts.default_guidance_scale) == (Variant.BASE, 50, 4.0)
    assert facts.default_size == Size(128, 128)
    assert facts.alpha_methods == (AlphaMethod.OPAQUE, AlphaMethod.DIFFERENCE, AlphaMethod.KEY)


@pytest.mark.parametrize("model", ["/no/such/place", "not a hub id", "geometry:/no/such/place"])
def test_unknown_model_is_one_line(model: str) -> None:
    """A model that is nowhere ends the command with one line and exit code 2."""
    command = [sys.executable, "-m", "kleinserve", "serve", "--model", model, "--port", "0", "--metrics-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kleinserve: ")


def test_incomplete_directories_say_what_is_missing(tmp_path: Path) -> None:
    """A directory without an index, without parts, or without safetensors is refused by name."""
    with pytest.raises(UnusableCheckpoint, match=r"no model_index\.json"):
        checkpoint.find(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKLFlux2"]}))
    with pytest.raises(UnusableCheckpoint, match=r"lacks .*transformer"):
        checkpoint.find(str(tmp_path))
    whole = klein(tmp_path / "whole")
    next((whole / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(UnusableCheckpoint, match="no safetensors weights in vae"):
        checkpoint.find(str(whole))


def test_geometry_of_configs_alone(tmp_path: Path) -> None:
    """A directory that holds only configs is served with random weights."""
    whole = klein(tmp_path)
    for weights in whole.glob("*/*.safetensors"):
        weights.unlink()
    facts = Engine(checkpoint.find(f"geometry:{whole}"), Config(threads=1)).facts
    assert facts.default_size == Size(128, 128)


def test_offload_on_a_cpu_is_refused() -> None:
    """A memory mode that cannot be honoured is refused, not ignored."""
    with pytest.raises(UnusableCheckpoint, match="offload needs an accelerator"):
        Engine(checkpoint.find("mini"), Config(memory="offload", device="cpu"))
