"""The transformer over a packed pass, from latents to velocities: by diffusers' blocks; for a CPU see eager.py.

Double blocks take text and image tokens in stream order, single ones all tokens in sequence order (attention.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from kleinserve.engine.attention import PackedDoubleProcessor, PackedSingleProcessor, Packing


class Counts(NamedTuple):
    """Tokens of each sequence: of its text, its images, both, and of the image that is denoised."""

    texts: list[int]
    images: list[int]
    both: list[int]
    outputs: list[int]


@dataclass(frozen=True, eq=False)
class Pass:
    """What one set of sequences needs at every step while the set stays the same.

    context: [all text tokens, D], stream order. references: [R, D] of each sequence. rotary: the network's own, of all
    tokens, sequence order. places: sequence positions of the outputs.
    """

    counts: Counts
    packing: Packing
    context: Tensor
    references: list[Tensor]
    rotary: list[Tensor]
    places: Tensor


class Network(Protocol):
    """A transformer as it runs on one kind of device."""

    def rotary(self, positions: Tensor) -> list[Tensor]:
        """The rotary embedding of position ids [tokens, 4]: tensors [tokens, ...]."""
        ...

    def level(self, sigma: float, guidance_scale: float) -> Any:
        """What a noise level does to every block: for `velocities`."""
        ...

    def velocities(self, latents: list[Tensor], levels: list[Any], of: list[int], given: Pass) -> list[Tensor]:
        """Latents [T, C] of each sequence, at `levels[of[i]]` -> the predicted velocities, float32 [T, C]."""
        ...


class Modulations(NamedTuple):
    """Of a noise level: the double blocks' two streams [1, 6 D], the single ones [1, 3 D], the last norm [1, 2 D]."""

    text: Tensor
    image: Tensor
    single: Tensor
    last: Tensor


def modulations(transformer: Flux2Transformer2DModel, sigma: float, guidance_scale: float) -> Modulations:
    """Made on the device: nothing is copied there."""
    dtype, device = transformer.dtype, transformer.device
    # The stock pipeline rounds 1000 sigma to the model's dtype, divides, and the model multiplies again.
    time = (torch.full((1,), sigma, dtype=torch.float32, device=device) * 1000).to(dtype) / 1000 * 1000
    scale = torch.full((1,), guidance_scale, dtype=torch.float32, device=device).to(dtype) * 1000
    embedding = transformer.time_guidance_embed(time, scale if transformer.config.guidance_embeds else None)
    norm = transformer.norm_out
    return Modulations(
        transformer.double_stream_modulation_txt(embedding),
        transformer.double_stream_modulation_img(embedding),
        transformer.single_stream_modulation(embedding),
        norm.linear(norm.silu(embedding)),
    )


class StockNetwork:
    """diffusers' blocks with packed attention, as they are compiled."""

    def __init__(self, transformer: Flux2Transformer2DModel):
        self._transformer, self._dtype = transformer, transformer.dtype
        for block in transformer.transformer_blocks:
            block.attn.set_processor(PackedDoubleProcessor())
        for block in transformer.single_transformer_blocks:
            block.attn.set_processor(PackedSingleProcessor())

    def rotary(self, positions: Tensor) -> list[Tensor]:
        """Cosines and sines, float32 [tokens, head channels]."""
        return list(self._transformer.pos_embed(positions))

    def level(self, sigma: float, guidance_scale: float) -> Modulations:
        return modulations(self._transformer, sigma, guidance_scale)

    def velocities(
        self, latents: list[Tensor], levels: Sequence[Modulations], of: list[int], given: Pass
    ) -> list[Tensor]:
        """Source: Flux2Transformer2DModel.forward, diffusers 0.42.1."""
        model, counts, extras = self._transformer, given.counts, {"packing": given.packing}
        embedded = [model.x_embedder(each.to(self._dtype)) for each in latents]
        image = torch.cat([part for pair in zip(embedded, given.references, strict=True) for part in pair])[None]
        text, rotary = given.context[None], tuple(given.rotary)
        of_text = per_token([level.text for level in levels], of, counts.texts)[None]
        of_image = per_token([level.image for level in levels], of, counts.images)[None]
        for block in model.transformer_blocks:
            text, image = block(image, text, of_image, of_text, rotary, extras)
        hidden = torch.cat([text, image], dim=1)[:, given.packing.order]
        of_all = per_token([level.single for level in levels], of, counts.both)[None]
        for block in model.single_transformer_blocks:
            hidden = block(hidden, None, of_all, rotary, extras)
        # AdaLayerNormContinuous, with its scale and shift per token: scale comes first here, unlike in the blocks.
        scale, shift = per_token([level.last for level in levels], of, counts.outputs)[None].chunk(2, dim=-1)
        hidden = model.norm_out.norm(hidden[:, given.places]) * (1 + scale) + shift
        return list(model.proj_out(hidden)[0].float().split(counts.outputs))


def per_token(values: list[Tensor], of: list[int], lengths: list[int]) -> Tensor:
    """[1, k] of each level -> [tokens, k]: sequence i has `lengths[i]` tokens of level `of[i]`. TorchScript too.

    A single level stays [1, k] and broadcasts.
    """
    if len(values) == 1:
        return values[0]
    return torch.cat([values[of[i]].expand(lengths[i], -1) for i in range(len(of))])
