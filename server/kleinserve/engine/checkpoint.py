"""A klein or FLUX.2 checkpoint: where it is, whether it is whole, its modules. Nothing is known of any one model."""

import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from kleinserve.engine import geometry
from kleinserve.engine.layout import TEXT_ENCODERS, Layout
from kleinserve.errors import UnusableCheckpoint

__all__ = ["MINI", "PROMPT_TOKENS_MAX", "Layout", "Modules", "find", "init_empty_weights", "load", "skeleton"]

MINI = Path(__file__).parent.parent / "mini"
GEOMETRY = "geometry:"
PROMPT_TOKENS_MAX = 512  # what klein was trained with; a shorter tokenizer limit wins
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
LINE_CHARACTERS_MAX = 200  # of a library's message
# A VAE's own repository has its weights at the top; of a pipeline's only whole single files lie there.
WANTED = ("*.json", "*.txt", "*.jinja", "*/*.model", "*/*.safetensors", "diffusion_pytorch_model*.safetensors")
GEOMETRIES = {
    "klein-4b": (geometry.KLEIN_4B, False),
    "klein-base-4b": (geometry.KLEIN_4B, True),
    "klein-9b": (geometry.KLEIN_9B, False),
    "klein-base-9b": (geometry.KLEIN_9B, True),
}
NETWORKS = ("text_encoder", "transformer", "vae")


def find(model: str, revision: str = "", vae: str = "") -> Layout:
    """The layout that `--model` names: mini, a directory, a hub id or a geometry.

    `revision`: of a hub id. `vae`: a directory or hub id with a VAE that takes the place of the model's own.
    Raises: UnusableCheckpoint, one line saying what is missing.
    """
    other = _other_vae(vae) if vae else None
    if (known := model.removeprefix(GEOMETRY)) in GEOMETRIES and model != known:
        place, is_base = GEOMETRIES[known]
        layout = Layout(model, place, MINI / "tokenizer", False, PROMPT_TOKENS_MAX, other, is_base)
        with _readable(layout.part("vae")):
            layout.check()
        return layout
    has_weights, place_name = not model.startswith(GEOMETRY), model.removeprefix(GEOMETRY)
    directory = MINI if model == "mini" else _directory(place_name, revision)
    if revision and (model == "mini" or Path(place_name).expanduser().is_dir()):
        raise UnusableCheckpoint(f"revision {revision} is of a hub id, and {model} is none")
    layout = _layout(directory, place_name, has_weights, other)
    with _readable(directory):
        layout.check()
    if has_weights:
        for part in NETWORKS:
            _check_files(layout.part(part))
    return layout


def _layout(directory: Path, place: str, has_weights: bool, other: Path | None) -> Layout:
    index = directory / "model_index.json"
    if not index.is_file():
        raise UnusableCheckpoint(f"{directory}: no model_index.json, so not a diffusers-format checkpoint")
    with _readable(index):
        described = dict(json.loads(index.read_text()))
    missing = [part for part in PARTS if part not in described or not (directory / part).is_dir()]
    tokenizer = directory / "tokenizer"
    if not has_weights and "tokenizer" in missing:
        missing.remove("tokenizer")
        tokenizer = MINI / "tokenizer"
    if other is not None and "vae" in missing:
        missing.remove("vae")
    if missing:
        raise UnusableCheckpoint(f"{directory}: lacks {', '.join(missing)}")
    name = directory.name if Path(place).expanduser().is_dir() else place  # a hub id's directory is named by a hash
    return Layout(name if has_weights else GEOMETRY + name, directory, tokenizer, has_weights, vae_directory=other)


def _other_vae(vae: str) -> Path:
    """Where its config lies: a VAE's own repository, or the part of a pipeline's."""
    directory = _directory(vae)
    for place in (directory, directory / "vae"):
        if (place / "config.json").is_file():
            return place
    raise UnusableCheckpoint(f"{vae}: no VAE: neither config.json nor vae/config.json")


def _check_files(directory: Path) -> None:
    """Raise UnusableCheckpoint where a network's safetensors are absent, incomplete or cut off."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UnusableCheckpoint(f"{directory}: no safetensors weights (other formats are not loaded)")
    for index in directory.glob("*.safetensors.index.json"):
        with _readable(index):
            shards = set(json.loads(index.read_text())["weight_map"].values())
        if absent := sorted(shards - {file.name for file in files}):
            raise UnusableCheckpoint(f"{directory}: lacks {len(absent)} of {len(shards)} shards, first {absent[0]}")
    for file in files:
        with _readable(file, "cut off, or not safetensors"), safe_open(file, "pt"):
            pass  # the header says how long the file must be


@contextmanager
def _readable(path: Path | str, problem: str = "cannot be used") -> Iterator[None]:
    """Turn whatever the libraries raise about `path` into UnusableCheckpoint; some raise bare Exceptions."""
    try:
        yield
    except UnusableCheckpoint:
        raise
    except Exception as error:
        raise UnusableCheckpoint(f"{path}: {problem}: {_line(error)}") from error


def _directory(model: str, revision: str = "") -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise UnusableCheckpoint(f"{model}: not a directory, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    with _readable(model, "no directory, and not to be had from the hub"):
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=[*WANTED]))


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error), LINE_CHARACTERS_MAX, placeholder=" …") or type(error).__name__


@dataclass(frozen=True)
class Modules:
    """The loaded modules, in eval mode, on the CPU or already on the device (see memory.py)."""

    transformer: Flux2Transformer2DModel
    vae: AutoencoderKLFlux2
    text_encoder: torch.nn.Module
    tokenizer: Any
    scheduler: FlowMatchEulerDiscreteScheduler


def skeleton(layout: Layout) -> dict[str, torch.nn.Module]:
    """The three networks without weights (parameters on the meta device): for counting bytes, or to be filled."""
    text, _ = TEXT_ENCODERS[layout.text_encoder_class]
    with init_empty_weights(include_buffers=False):
        return {
            "transformer": Flux2Transformer2DModel.from_config(layout.transformer_config),
            "vae": AutoencoderKLFlux2.from_config(layout.vae_config),
            "text_encoder": text(layout.text_config),
        }


def load(layout: Layout, dtype: torch.dtype) -> Modules:
    """The modules of `layout` in `dtype` on the CPU, the text encoder cut after the last layer read.

    safetensors only, no remote code. Raises: UnusableCheckpoint.
    """
    # Both libraries report, on standard error, the layers that are left out on purpose.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    networks = _weights(layout, dtype) if layout.has_weights else geometry.filled(skeleton(layout), dtype)
    with _readable(layout.directory / "scheduler"):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(layout.directory / "scheduler")
    # hidden_states[-1] is normed; what the pipeline reads at this depth of the whole model is not
    networks["text_encoder"].norm = torch.nn.Identity()
    for network in networks.values():
        network.requires_grad_(False).eval()
    return Modules(tokenizer=_tokenizer(layout), scheduler=scheduler, **networks)


def _tokenizer(layout: Layout) -> Any:
    directory = layout.tokenizer_directory
    with _readable(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        legacy = directory / "chat_template.json"  # where processors kept theirs
        if tokenizer.chat_template is None and legacy.is_file():
            tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
    for lacking, name in ((tokenizer.chat_template, "chat template"), (tokenizer.pad_token_id, "padding token")):
        if lacking is None:
            raise UnusableCheckpoint(f"{directory}: no {name}")
    if len(tokenizer) > (known := layout.text_config.vocab_size):
        raise UnusableCheckpoint(f"{directory}: {len(tokenizer)} tokens, the text encoder knows {known}")
    return tokenizer


def _weights(layout: Layout, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    text, _ = TEXT_ENCODERS[layout.text_encoder_class]
    # A vision model's language model lies under a prefix: "language_model.model." or, of late, "model.language_model.".
    renamed = {r"^(model\.)?language_model\.(model\.)?": ""} if text.__name__ == "MistralModel" else None
    wanted: dict[str, tuple[Any, dict[str, Any]]] = {
        "transformer": (Flux2Transformer2DModel, {"torch_dtype": dtype}),
        "vae": (AutoencoderKLFlux2, {"torch_dtype": dtype}),
        "text_encoder": (text, {"dtype": dtype, "config": layout.text_config, "key_mapping": renamed}),
    }
    networks = {}
    for part, (kind, options) in wanted.items():
        options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        directory = layout.part(part)
        with _readable(directory):
            networks[part], report = kind.from_pretrained(directory, **options)
        # Either library would go on with random or no values in their place.
        if lacking := sorted(report["missing_keys"]):
            problem = f"the weights lack {len(lacking)} tensors, first {lacking[0]}"
            raise UnusableCheckpoint(f"{directory}: {problem}")
    with _readable(layout.part("vae")):
        _keep_scale(networks["vae"].bn, layout.part("vae"))
    return networks


def _keep_scale(norm: torch.nn.Module, directory: Path) -> None:
    """Give `norm` its statistics in float32, whatever the dtype: they are the latents' scale, not weights."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in ("running_mean", "running_var"):
                if f"bn.{name}" in tensors.keys():  # noqa: SIM118 - no mapping
                    setattr(norm, name, tensors.get_tensor(f"bn.{name}").float())
