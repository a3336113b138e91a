"""What is not a checkpoint is refused in one line; what is tells its facts itself (engine/{geometry,layout}.py)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from kleinserve.config import load
from kleinserve.core import AlphaMethod, Operation, Size, Variant
from kleinserve.engine import checkpoint, geometry
from kleinserve.engine.engine import Engine
from kleinserve.errors import UnusableCheckpoint
from safetensors.torch import load_file, save_file

from tests.engine.checkpoints import flux2, klein
from tests.engine.drawing import ask, draw, loaded


def test_facts_come_from_the_checkpoint(tmp_path: Path) -> None:
    """A base layout of 3 channels: guidance 4, 50 steps, its VAE's sample size, cut-outs by difference or key."""
    layout = checkpoint.find(str(klein(tmp_path, is_distilled=False)))
    facts = Engine(layout, load({"threads": 1})).facts
    assert layout.text_layers == (2, 4, 6)
    assert (facts.variant, facts.default_steps, facts.default_guidance_scale) == (Variant.BASE, 50, 4.0)
    assert facts.default_size == Size(128, 128)
    assert facts.alpha_methods == (AlphaMethod.OPAQUE, AlphaMethod.DIFFERENCE, AlphaMethod.KEY)


def test_old_config_means_the_defaults(tmp_path: Path) -> None:
    """A FLUX.2 transformer config from before `guidance_embeds` is read as diffusers reads it: with guidance."""
    directory = flux2(tmp_path)
    edit(directory / "transformer" / "config.json", "guidance_embeds", None)
    facts = loaded(directory).facts
    assert (facts.variant, facts.default_steps, facts.default_guidance_scale) == (Variant.GUIDANCE_EMBEDDED, 50, 4.0)


def test_language_model_layers_of_published_depths() -> None:
    """Read are layers 9, 18, 27 of klein-4b's 36; the rest is not loaded."""
    layout = checkpoint.find("geometry:klein-4b")
    assert layout.text_layers == (9, 18, 27)
    assert layout.text_config.num_hidden_layers == 27


def edit(file: Path, key: str, value: Any) -> None:
    """Change one key of a JSON file, or delete it."""
    content = json.loads(file.read_text())
    content[key] = value
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_layer(file: Path) -> None:
    save_file({k: v for k, v in load_file(file).items() if ".1." not in k}, file, metadata={"format": "pt"})


def lose_shard(file: Path) -> None:
    """Rename the only file to the first of two."""
    shards = [f"{file.stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}
    file.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    file.rename(file.with_name(shards[0]))


WEIGHTS = "diffusion_pytorch_model.safetensors"
# By name: what is done to a whole checkpoint, and what the one line says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda d: (shutil.rmtree(d), d.mkdir()), "no model_index.json"),
    "index": (lambda d: halve(d / "model_index.json"), "model_index.json: cannot be used"),
    "no-vae": (lambda d: shutil.rmtree(d / "vae"), "lacks vae"),
    "no-tokenizer": (lambda d: shutil.rmtree(d / "tokenizer"), "lacks tokenizer"),
    "class": (lambda d: edit(d / "model_index.json", "_class_name", "FluxPipeline"), "FluxPipeline is not one of"),
    "text": (
        lambda d: edit(d / "model_index.json", "text_encoder", ["t", "T5"]),
        "takes a text encoder Qwen3ForCausalLM",
    ),
    "guided": (lambda d: edit(d / "transformer/config.json", "guidance_embeds", True), "guidance_embeds is True"),
    "width": (lambda d: edit(d / "transformer/config.json", "joint_attention_dim", 64), "takes 64 text channels"),
    "bin": (
        lambda d: (d / "vae" / WEIGHTS).rename(d / "vae/diffusion_pytorch_model.bin"),
        "vae: no safetensors weights",
    ),
    "shard": (lambda d: lose_shard(d / "transformer" / WEIGHTS), "transformer: lacks 1 of 2 shards"),
    "cut-transformer": (lambda d: halve(d / "transformer" / WEIGHTS), f"{WEIGHTS}: cut off"),
    "cut-text": (lambda d: halve(d / "text_encoder/model.safetensors"), "model.safetensors: cut off"),
    "layer-transformer": (lambda d: drop_layer(d / "transformer" / WEIGHTS), "transformer: the weights lack"),
    "layer-vae": (lambda d: drop_layer(d / "vae" / WEIGHTS), "vae: the weights lack"),
    "layer-text": (lambda d: drop_layer(d / "text_encoder/model.safetensors"), "text_encoder: the weights lack 11"),
    "config": (lambda d: (d / "vae/config.json").unlink(), "no file named config.json"),
    "scheduler": (lambda d: (d / "scheduler/scheduler_config.json").unlink(), "scheduler: cannot be used"),
    "vocabulary": (lambda d: halve(d / "tokenizer/tokenizer.json"), "tokenizer: cannot be used"),
    "template": (lambda d: (d / "tokenizer/chat_template.jinja").unlink(), "tokenizer: no chat template"),
}
NOWHERE = {
    "/no/such/place": "not a directory, and not a hub id",
    "not a hub id": "not a directory, and not a hub id",
    "geometry:/no/such/place": "/no/such/place: not a directory",
    "no/such-model": "not to be had from the hub",
}
# All in one process: importing torch takes seconds. That main makes exit code 2 and this line of it, e2e shows.
EVERY = """
import contextlib, io, json, sys
from kleinserve.config import load
from kleinserve.engine import checkpoint, geometry
from kleinserve.engine.engine import Engine
from kleinserve.errors import UnusableCheckpoint
said = {}
for model in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            Engine(checkpoint.find(model), load({"threads": 1}))
        except UnusableCheckpoint as error:
            said[model] = [str(error), out.getvalue(), err.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The refusal, and what was written to standard output and error, for every model above, by name."""
    root = tmp_path_factory.mktemp("broken")
    whole = klein(root / "whole")
    for name, (breaking, _) in BROKEN.items():
        breaking(Path(shutil.copytree(whole, root / name)))
    command = [sys.executable, "-c", EVERY, *(str(root / name) for name in BROKEN), *NOWHERE]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    return {model.removeprefix(f"{root}/"): answer for model, answer in json.loads(done.stdout).items()}


@pytest.mark.parametrize("model", [*BROKEN, *NOWHERE])
def test_unusable_model_is_one_line(model: str, said: dict[str, list[str]]) -> None:
    """A model that cannot be served is refused in one line that says why, and nothing else is said."""
    line, *written = said[model]
    assert written == ["", ""]
    assert "\n" not in line
    assert (BROKEN[model][1] if model in BROKEN else NOWHERE[model]) in line
    assert len(line) < 500


def test_geometry_of_configs_alone(tmp_path: Path) -> None:
    """A directory that holds only configs is served with random weights."""
    whole = klein(tmp_path)
    for weights in whole.glob("*/*.safetensors"):
        weights.unlink()
    facts = loaded(f"geometry:{whole}").facts
    assert (facts.name, facts.default_size) == (f"geometry:{whole.name}", Size(128, 128))


@pytest.mark.parametrize(
    ("name", "billions", "text", "is_distilled"),
    [
        ("klein-4b", 3.8755, 2560, True),
        ("klein-base-4b", 3.8755, 2560, False),
        ("klein-9b", 9.08, 4096, True),
        ("klein-base-9b", 9.08, 4096, False),
    ],
)
def test_published_geometries(name: str, billions: float, text: int, is_distilled: bool) -> None:
    """Each published klein is there as a geometry with its own size; the base models are not distilled."""
    layout = checkpoint.find(f"geometry:{name}")
    networks = checkpoint.skeleton(layout)
    count = sum(parameter.numel() for parameter in networks["transformer"].parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.01)
    assert (layout.text_config.hidden_size, layout.is_distilled, layout.text_layers) == (
        text,
        is_distilled,
        (9, 18, 27),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_latent_scale_is_the_files(dtype: str, tmp_path: Path) -> None:
    """The batch norm's statistics are read in float32 from the file whatever the dtype, and used so."""
    directory = klein(tmp_path)
    stored = load_file(directory / "vae" / WEIGHTS)
    vae = loaded(directory, dtype=dtype)._vae
    assert torch.equal(vae._mean.flatten(), stored["bn.running_mean"])
    assert torch.equal(vae._std.flatten(), (stored["bn.running_var"] + vae.module.config.batch_norm_eps).sqrt())


@pytest.mark.parametrize("place", ["", "vae"])
def test_another_vae_takes_the_place_of_the_models_own(place: str, tmp_path: Path) -> None:
    """A VAE with a narrower decoder, in a repository of its own or a pipeline's, is loaded instead, and draws.

    The model's own need not be there.
    """
    directory, small = klein(tmp_path / "whole"), tmp_path / "small"
    config = AutoencoderKLFlux2.from_pretrained(directory, subfolder="vae").config
    narrow = AutoencoderKLFlux2.from_config(dict(config) | {"decoder_block_out_channels": (4, 8, 8, 8)})
    narrow.save_pretrained(small / place)
    shutil.rmtree(directory / "vae")
    engine = Engine(checkpoint.find(str(directory), vae=str(small)), load({"threads": 1}))
    assert engine._vae.module.decoder.conv_out.in_channels == 4
    [picture] = draw(engine, ask("1", Operation.GENERATE, "a star", (), Size(64, 64), 1, 1, 1.0))
    assert picture.shape == (64, 64, 3)


def test_unusable_vae_or_revision_is_one_line(tmp_path: Path) -> None:
    """A VAE that is none, one that does not fit, and a revision of what has none are refused."""
    directory = klein(tmp_path)
    for model, given, said in (
        (directory, {"vae": str(tmp_path / "tokenizer")}, "no VAE: neither config.json nor vae/config.json"),
        (directory, {"vae": str(geometry.KLEIN_4B)}, "takes 32 latent channels, the VAE gives 4 x 32"),
        (directory, {"revision": "abc"}, "revision abc is of a hub id"),
        ("mini", {"revision": "abc"}, "revision abc is of a hub id"),
    ):
        with pytest.raises(UnusableCheckpoint, match=said) as refused:
            checkpoint.find(str(model), **given)
        assert "\n" not in str(refused.value)


def test_a_revision_is_what_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is asked for the commit that is pinned, and for its main branch where none is."""
    asked = []

    def fetch(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision))
        return str(directory)

    directory = klein(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    names = [checkpoint.find("some/klein", revision).name for revision in ("0123abc", "")]
    assert (asked, names) == ([("some/klein", "0123abc"), ("some/klein", None)], ["some/klein"] * 2)
