"""The transformer's blocks over a packed pass: the stock ones; for a CPU see eager.py. Knows no rows.

Both take text and image tokens in stream order and return all tokens in sequence order (attention.py). Modulations are
[1, 1, k] where all tokens are at one noise level, else [1, tokens, k].
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from kleinserve.engine.attention import PackedDoubleProcessor, PackedSingleProcessor, Packing


@dataclass(frozen=True)
class Modulations:
    """Of the noise levels: for both streams of the double blocks [1, ., 6 D], and for the single ones [1, ., 3 D]."""

    image: Tensor
    text: Tensor
    single: Tensor


class Blocks(Protocol):
    """Every block of a transformer, one after the other."""

    def rotary(self, positions: Tensor) -> Any:
        """The rotary embedding of position ids [tokens, 4], in sequence order: for `__call__`."""
        ...

    def __call__(self, text: Tensor, image: Tensor, modulations: Modulations, rotary: Any, packing: Packing) -> Tensor:
        """Text and image tokens [1, T, D] -> [1, all tokens, D]."""
        ...


class StockBlocks:
    """diffusers' blocks with packed attention, as they are compiled."""

    def __init__(self, transformer: Flux2Transformer2DModel):
        self._transformer = transformer
        for block in transformer.transformer_blocks:
            block.attn.set_processor(PackedDoubleProcessor())
        for block in transformer.single_transformer_blocks:
            block.attn.set_processor(PackedSingleProcessor())

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [tokens, head channels]."""
        cosines, sines = self._transformer.pos_embed(positions)
        return cosines, sines

    def __call__(
        self, text: Tensor, image: Tensor, modulations: Modulations, rotary: tuple[Tensor, Tensor], packing: Packing
    ) -> Tensor:
        extras = {"packing": packing}
        for block in self._transformer.transformer_blocks:
            text, image = block(image, text, modulations.image, modulations.text, rotary, extras)
        hidden: Tensor = torch.cat([text, image], dim=1)[:, packing.order]
        for block in self._transformer.single_transformer_blocks:
            hidden = block(hidden, None, modulations.single, rotary, extras)
        return hidden
