"""The stock pipeline as its card calls it: a checkpoint in, orders in, previews and PNGs out. Knows no gRPC."""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from kleinserve.core import Size
from kleinserve.engine import checkpoint, geometry, preview
from kleinserve.engine.vae import Vae
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, Qwen3ForCausalLM


@dataclass(frozen=True)
class Order:
    """One image to make. `references`: whole image files."""

    prompt: str
    edge: int
    seed: int
    steps: int
    references: tuple[bytes, ...] = ()


class Stock:
    """A loaded `Flux2KleinPipeline`. One call at a time: it keeps state on itself."""

    def __init__(self, model: str, device: str, dtype: str):
        layout = checkpoint.find(model)
        kind = getattr(torch, dtype)
        self._pipeline = _loaded(layout, kind) if layout.has_weights else _random(layout, kind)
        self._pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        vae = self._pipeline.vae
        self._mode = "RGBA" if vae.config.in_channels == 4 else "RGB"
        # The stock processor would drop the alpha that a 4-channel VAE needs.
        self._pipeline.image_processor.register_to_config(do_convert_rgb=self._mode == "RGB")
        self._settings = {
            "guidance_scale": 1.0,
            "text_encoder_out_layers": layout.text_layers,
            "max_sequence_length": layout.prompt_tokens_limit or min(512, self._pipeline.tokenizer.model_max_length),
        }
        # The cheapest reasonable preview, ours: a linear map. A VAE decode at each step would cost more.
        self._preview = preview.fit(Vae(vae, torch.device(device), 4_194_304))

    def draw(
        self, orders: Sequence[Order], on_preview: Callable[[int, int, bytes], None], is_wanted: Callable[[], bool]
    ) -> list[bytes]:
        """The PNGs of orders of one shape and step count; more than one only without references.

        `on_preview` gets order, step and JPEG. Where nobody wants the images any more, the remaining steps are skipped.
        """
        first = orders[0]
        size = Size(first.edge, first.edge)

        def on_step(pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            for i, picture in enumerate(self._preview.draw(tensors["latents"].float(), size, is_cut_out=False)):
                on_preview(i, step + 1, _jpeg(picture))
            pipeline._interrupt = not is_wanted()  # as the library's guide to callbacks says
            return tensors

        images = self._pipeline(
            prompt=[order.prompt for order in orders],
            image=[Image.open(io.BytesIO(r)).convert(self._mode) for r in first.references] or None,
            height=first.edge,
            width=first.edge,
            num_inference_steps=first.steps,
            generator=[torch.Generator().manual_seed(order.seed) for order in orders],
            callback_on_step_end=on_step,
            **self._settings,
        ).images
        return [_saved(image, "PNG") for image in images]


def _loaded(layout: checkpoint.Layout, dtype: torch.dtype) -> Flux2KleinPipeline:
    return Flux2KleinPipeline.from_pretrained(layout.directory, dtype=dtype)


def _random(layout: checkpoint.Layout, dtype: torch.dtype) -> Flux2KleinPipeline:
    """The stock pipeline of a geometry: its shapes with the random weights that the server fills in, nothing cut."""
    directory = layout.directory
    with checkpoint.init_empty_weights(include_buffers=False):
        networks = {
            "transformer": Flux2Transformer2DModel.from_config(layout.transformer_config),
            "vae": AutoencoderKLFlux2.from_config(layout.vae_config),
            "text_encoder": Qwen3ForCausalLM(AutoConfig.from_pretrained(directory / "text_encoder")),
        }
    geometry.filled(networks, dtype)
    networks["text_encoder"].tie_weights()
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(directory / "scheduler"),
        tokenizer=AutoTokenizer.from_pretrained(layout.tokenizer_directory),
        is_distilled=layout.is_distilled,
        **{name: network.eval().requires_grad_(False) for name, network in networks.items()},
    )


def _jpeg(picture: torch.Tensor) -> bytes:
    """[channels, H, W] in −1..1 -> a file; alpha is dropped."""
    array = ((picture[:3] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return _saved(Image.fromarray(array), "JPEG")


def _saved(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def arguments() -> argparse.Namespace:
    """What every peer is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: torch's own choice")
    return parser.parse_args()
