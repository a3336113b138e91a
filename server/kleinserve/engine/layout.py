"""What a checkpoint directory says of itself, before any weight is read. Nothing is known of any one model."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import AutoConfig, MistralModel, Qwen3Model

from kleinserve.core import EDGE_MULTIPLE
from kleinserve.errors import UnusableCheckpoint

DEFAULT_TRANSPARENT_PHRASE = "on a transparent background"
# By the pipeline's class: the text encoder it calls, and whether it passes guidance to the transformer.
PIPELINES = {
    "Flux2KleinPipeline": ("Qwen3ForCausalLM", False),
    "Flux2Pipeline": ("Mistral3ForConditionalGeneration", True),
}
# By the text encoder's class: the language model in it, and its configuration's type.
TEXT_ENCODERS = {
    "Qwen3ForCausalLM": (Qwen3Model, "qwen3"),
    "Mistral3ForConditionalGeneration": (MistralModel, "mistral"),
}


@dataclass(frozen=True)
class Layout:
    """A checkpoint directory's configs. `has_weights` False: a geometry.

    `vae_directory`: another VAE than its own. `is_base`: a geometry's configs but for the distillation.
    """

    name: str
    directory: Path
    tokenizer_directory: Path
    has_weights: bool
    prompt_tokens_limit: int | None = None
    vae_directory: Path | None = None
    is_base: bool = False

    def part(self, name: str) -> Path:
        """The directory of one of its networks."""
        return self.vae_directory if name == "vae" and self.vae_directory else self.directory / name

    @cached_property
    def index(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "model_index.json").read_text()))

    @property
    def is_distilled(self) -> bool:
        """Step-wise distilled: guidance has no effect. Absent from model_index.json: a base model."""
        return not self.is_base and bool(self.index.get("is_distilled", False))

    @property
    def text_encoder_class(self) -> str:
        return str(self.index["text_encoder"][1])

    @cached_property
    def transformer_config(self) -> dict[str, Any]:
        return _whole_config(Flux2Transformer2DModel, self.directory / "transformer")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return _whole_config(AutoencoderKLFlux2, self.part("vae"))

    @cached_property
    def text_layers(self) -> tuple[int, int, int]:
        """Hidden states read: a quarter, a half and three quarters of the depth (9, 18, 27 of 36)."""
        depth = self._language_config().num_hidden_layers
        return depth // 4, depth // 2, depth * 3 // 4

    @cached_property
    def text_config(self) -> Any:
        """The language model's config, cut after the last layer that is read."""
        config = self._language_config()
        config.num_hidden_layers = self.text_layers[-1]
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.text_layers[-1]]
        return config

    def _language_config(self) -> Any:
        """A new one at each call: `text_config` changes its own."""
        config = AutoConfig.from_pretrained(self.directory / "text_encoder", local_files_only=True)
        return getattr(config, "text_config", config)

    @cached_property
    def transparent_phrase(self) -> str:
        """What is appended to a prompt that should be cut out by a model with native alpha."""
        file = self.directory / "kleinserve.json"
        extras = json.loads(file.read_text()) if file.exists() else {}
        return str(extras.get("transparent_phrase", DEFAULT_TRANSPARENT_PHRASE))

    def check(self) -> None:
        """Raise UnusableCheckpoint, one line, where the configs are no such pipeline's or do not fit together."""
        for problem in self._problems():
            raise UnusableCheckpoint(f"{self.directory}: {problem}")

    def _problems(self) -> Iterator[str]:
        pipeline = self.index.get("_class_name")
        if pipeline not in PIPELINES:
            yield f"pipeline {pipeline} is not one of {', '.join(PIPELINES)}"
            return
        text_class, is_guided = PIPELINES[pipeline]
        if self.text_encoder_class != text_class:
            yield f"{pipeline} takes a text encoder {text_class}, this one is {self.text_encoder_class}"
            return
        transformer, vae, text = self.transformer_config, self.vae_config, self.text_config
        if text.model_type != TEXT_ENCODERS[text_class][1]:
            yield f"{text_class} holds a {TEXT_ENCODERS[text_class][1]} model, this one a {text.model_type}"
        if transformer["guidance_embeds"] != is_guided:
            yield f"the transformer's guidance_embeds is {transformer['guidance_embeds']}, {pipeline} has {is_guided}"
        if transformer["joint_attention_dim"] != 3 * text.hidden_size:
            taken = transformer["joint_attention_dim"]
            yield f"the transformer takes {taken} text channels, the text encoder gives 3 x {text.hidden_size}"
        if transformer["in_channels"] != 4 * vae["latent_channels"]:
            taken = transformer["in_channels"]
            yield f"the transformer takes {taken} latent channels, the VAE gives 4 x {vae['latent_channels']}"
        channels = vae["in_channels"], vae["out_channels"]
        if channels not in ((3, 3), (4, 4)):
            yield f"the VAE has {channels[0]} channels in and {channels[1]} out, where 3 or 4 in both are served"
        edge = 2 ** len(vae["block_out_channels"])  # each block but the last halves, the 2 × 2 patch halves again
        if edge != EDGE_MULTIPLE:
            yield f"a token is {edge} pixels wide by the VAE's blocks, where {EDGE_MULTIPLE} are served"


def _whole_config(kind: Any, directory: Path) -> dict[str, Any]:
    """The config file over the class's defaults: a published file may be older than a field."""
    fields = inspect.signature(kind.__init__).parameters.values()
    defaults = {field.name: field.default for field in fields if field.default is not field.empty}
    return defaults | dict(kind.load_config(directory))
