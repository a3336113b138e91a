"""A klein or FLUX.2 checkpoint: where it is, what it says of itself, its modules. Nothing is known of any one model."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.utils import logging as diffusers_logging
from transformers import AutoConfig, AutoTokenizer, MistralModel, Qwen3Model
from transformers.utils import logging as transformers_logging

from kleinserve.engine import geometry
from kleinserve.errors import UnusableCheckpoint

MINI = Path(__file__).parent.parent / "mini"
GEOMETRY = "geometry:"
PROMPT_TOKENS_MAX = 512  # what klein was trained with; a shorter tokenizer limit wins
DEFAULT_TRANSPARENT_PHRASE = "on a transparent background"
TEXT_ENCODERS = {"Qwen3ForCausalLM": Qwen3Model, "Mistral3ForConditionalGeneration": MistralModel}
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


@dataclass(frozen=True)
class Layout:
    """A checkpoint directory's configs, before any weight is read. `has_weights` False: a geometry."""

    name: str
    directory: Path
    tokenizer_directory: Path
    has_weights: bool
    prompt_tokens_limit: int | None = None

    @cached_property
    def index(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "model_index.json").read_text()))

    @property
    def is_distilled(self) -> bool:
        """Step-wise distilled: guidance has no effect. Absent from model_index.json: a base model."""
        return bool(self.index.get("is_distilled", False))

    @property
    def text_encoder_class(self) -> str:
        return str(self.index["text_encoder"][1])

    @cached_property
    def transformer_config(self) -> dict[str, Any]:
        return dict(Flux2Transformer2DModel.load_config(self.directory / "transformer"))

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return dict(AutoencoderKLFlux2.load_config(self.directory / "vae"))

    @cached_property
    def text_layers(self) -> tuple[int, int, int]:
        """Hidden states read: a quarter, a half and three quarters of the depth (9, 18, 27 of 36)."""
        depth = self._whole_text_config.num_hidden_layers
        return depth // 4, depth // 2, depth * 3 // 4

    @cached_property
    def _whole_text_config(self) -> Any:
        config = AutoConfig.from_pretrained(self.directory / "text_encoder", local_files_only=True)
        return getattr(config, "text_config", config)

    @cached_property
    def text_config(self) -> Any:
        """The language model's config, cut after the last layer that is read."""
        config = AutoConfig.from_pretrained(self.directory / "text_encoder", local_files_only=True)
        config = getattr(config, "text_config", config)
        config.num_hidden_layers = self.text_layers[-1]
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.text_layers[-1]]
        return config

    @cached_property
    def transparent_phrase(self) -> str:
        """What is appended to a prompt that should be cut out by a model with native alpha."""
        file = self.directory / "kleinserve.json"
        extras = json.loads(file.read_text()) if file.exists() else {}
        return str(extras.get("transparent_phrase", DEFAULT_TRANSPARENT_PHRASE))

    def check(self) -> None:
        """Raise UnusableCheckpoint, one line, where the configs do not fit together."""
        transformer, vae, text = self.transformer_config, self.vae_config, self.text_config
        if self.text_encoder_class not in TEXT_ENCODERS:
            raise UnusableCheckpoint(
                f"{self.directory}: text encoder {self.text_encoder_class} is not one of {', '.join(TEXT_ENCODERS)}"
            )
        if transformer["joint_attention_dim"] != 3 * text.hidden_size:
            raise UnusableCheckpoint(
                f"{self.directory}: the transformer takes {transformer['joint_attention_dim']} text channels, "
                f"the text encoder gives 3 x {text.hidden_size}"
            )
        if transformer["in_channels"] != 4 * vae["latent_channels"]:
            raise UnusableCheckpoint(
                f"{self.directory}: the transformer takes {transformer['in_channels']} latent channels, "
                f"the VAE gives 4 x {vae['latent_channels']}"
            )
        if vae["in_channels"] != vae["out_channels"] or vae["in_channels"] not in (3, 4):
            raise UnusableCheckpoint(
                f"{self.directory}: the VAE has {vae['in_channels']} channels in and {vae['out_channels']} out, "
                "where 3 or 4 in both are served"
            )


def find(model: str) -> Layout:
    """The layout that `--model` names: mini, a directory, a hub id or a geometry.

    Raises: UnusableCheckpoint, one line saying what is missing.
    """
    if model == GEOMETRY + "klein-4b":
        return Layout("geometry:klein-4b", geometry.KLEIN_4B, MINI / "tokenizer", False, PROMPT_TOKENS_MAX)
    has_weights = not model.startswith(GEOMETRY)
    directory = MINI if model == "mini" else _directory(model.removeprefix(GEOMETRY))
    index = directory / "model_index.json"
    if not index.is_file():
        raise UnusableCheckpoint(f"{directory}: no model_index.json, so not a diffusers-format checkpoint")
    try:
        described = json.loads(index.read_text())
    except ValueError as error:
        raise UnusableCheckpoint(f"{index}: not JSON ({error})") from error
    missing = [part for part in PARTS if part not in described or not (directory / part).is_dir()]
    tokenizer = directory / "tokenizer"
    if not has_weights and "tokenizer" in missing:
        missing.remove("tokenizer")
        tokenizer = MINI / "tokenizer"
    if missing:
        raise UnusableCheckpoint(f"{directory}: lacks {', '.join(missing)}")
    weightless = [p for p in ("text_encoder", "transformer", "vae") if not any((directory / p).glob("*.safetensors"))]
    if has_weights and weightless:
        raise UnusableCheckpoint(f"{directory}: no safetensors weights in {', '.join(weightless)}")
    layout = Layout(directory.name if model != "mini" else "mini", directory, tokenizer, has_weights)
    try:
        layout.check()
    except (OSError, KeyError, ValueError) as error:
        raise UnusableCheckpoint(f"{directory}: unreadable configuration: {_line(error)}") from error
    return layout


def _directory(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise UnusableCheckpoint(f"{model}: not a directory, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.txt", "*.jinja", "*/*.json", "*/*.txt", "*/*.jinja", "*/*.model", "*/*.safetensors"]
        return Path(snapshot_download(model, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises its own, urllib's and OS errors: all mean "not to be had"
        raise UnusableCheckpoint(f"{model}: cannot be fetched from the hub: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


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
    text = TEXT_ENCODERS[layout.text_encoder_class]
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
    try:
        networks = _weights(layout, dtype) if layout.has_weights else geometry.filled(skeleton(layout), dtype)
        tokenizer = AutoTokenizer.from_pretrained(layout.tokenizer_directory, local_files_only=True)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(layout.directory / "scheduler")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UnusableCheckpoint(f"{layout.directory}: cannot be loaded: {_line(error)}") from error
    # hidden_states[-1] is normed; what the pipeline reads at this depth of the whole model is not
    networks["text_encoder"].norm = torch.nn.Identity()
    for network in networks.values():
        network.requires_grad_(False).eval()
    return Modules(tokenizer=tokenizer, scheduler=scheduler, **networks)


def _weights(layout: Layout, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    text_directory = layout.directory / "text_encoder"
    if layout.text_encoder_class == "Mistral3ForConditionalGeneration":
        # The language model's weights lie under a prefix of the whole vision model's.
        mapping = {r"^(model\.)?language_model\.(model\.)?": ""}
        options |= {"key_mapping": mapping}
    text = TEXT_ENCODERS[layout.text_encoder_class].from_pretrained(
        text_directory, config=layout.text_config, dtype=dtype, **options
    )
    options.pop("key_mapping", None)
    return {
        "transformer": Flux2Transformer2DModel.from_pretrained(
            layout.directory / "transformer", torch_dtype=dtype, **options
        ),
        "vae": AutoencoderKLFlux2.from_pretrained(layout.directory / "vae", torch_dtype=dtype, **options),
        "text_encoder": text,
    }
