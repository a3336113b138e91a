"""The transformer's blocks over a packed pass: the stock ones, and the same in fewer calls for a CPU. Knows no rows.

Both take text and image tokens in stream order and return all tokens in sequence order (attention.py). Modulations are
[1, 1, k] where all tokens are at one noise level, else [1, tokens, k].
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2FeedForward
from torch import Tensor, nn

from kleinserve.engine.attention import PackedDoubleProcessor, PackedSingleProcessor, Packing, attend_each


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


class EagerBlocks:
    """The stock blocks' sums in float32 for a CPU, where a call costs what a small step computes.

    Query and key are one tensor, normalised and then turned by one complex product, which the compiler does not know;
    scale and shift are the norm's own, a gate and its sum are one call. Equal to the stock blocks within rounding.

    Source: Flux2TransformerBlock, Flux2SingleTransformerBlock and their attention, diffusers 0.42.1.
    """

    def __init__(self, transformer: Flux2Transformer2DModel):
        self._transformer = transformer
        self._heads, self._channels = transformer.config.num_attention_heads, transformer.config.attention_head_dim
        self._width = self._heads * self._channels
        self._norms: dict[nn.Module, Tensor] = {}  # by the query's
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            self._norms[block.attn.norm_q] = self._norm(block.attn.norm_q, block.attn.norm_k)
        for block in transformer.transformer_blocks:
            self._norms[block.attn.norm_added_q] = self._norm(block.attn.norm_added_q, block.attn.norm_added_k)

    def _norm(self, query: nn.RMSNorm, key: nn.RMSNorm) -> Tensor:
        """The weights [2 heads, head channels] of queries and keys that have been divided by their length."""
        shape = self._heads, self._channels
        weights = torch.cat([query.weight.detach().expand(shape), key.weight.detach().expand(shape)])
        return weights * self._channels**0.5

    def rotary(self, positions: Tensor) -> Tensor:
        """One complex number for each pair of channels: complex64 [tokens, 1, head channels / 2]."""
        cosines, sines = self._transformer.pos_embed(positions)
        return torch.complex(cosines[:, None, ::2], sines[:, None, ::2])

    def __call__(
        self, text: Tensor, image: Tensor, modulations: Modulations, rotary: Tensor, packing: Packing
    ) -> Tensor:
        texts, images = (_split(modulation, self._width) for modulation in (modulations.text, modulations.image))
        text, image = text[0], image[0]
        for block in self._transformer.transformer_blocks:
            text, image = self._double(block, text, image, texts, images, rotary, packing)
        hidden = _placed(torch.cat([text, image]), packing.order, packing)
        [single] = _split(modulations.single, self._width)
        for block in self._transformer.single_transformer_blocks:
            hidden = self._single(block, hidden, single, rotary, packing)
        return hidden[None]

    def _double(
        self,
        block: Any,
        text: Tensor,
        image: Tensor,
        of_text: list["_Modulation"],
        of_image: list["_Modulation"],
        rotary: Tensor,
        packing: Packing,
    ) -> tuple[Tensor, Tensor]:
        attn, count = block.attn, len(text)
        one, two = of_text[0].of(text, block.norm1_context), of_image[0].of(image, block.norm1)
        projected = torch.cat(
            [
                torch.cat([attn.add_q_proj(one), attn.add_k_proj(one), attn.add_v_proj(one)], dim=-1),
                torch.cat([attn.to_q(two), attn.to_k(two), attn.to_v(two)], dim=-1),
            ]
        )
        turned, value = self._divided(projected, attn.norm_q.eps)
        turned[:count].mul_(self._norms[attn.norm_added_q])
        turned[count:].mul_(self._norms[attn.norm_q])
        turned, value = (_placed(tokens, packing.order, packing) for tokens in (turned, value))
        attended = _placed(self._attend(turned, value, rotary, packing), packing.inverse, packing)
        text = of_text[0].add(text, attn.to_add_out(attended[:count]))
        image = of_image[0].add(image, attn.to_out[0](attended[count:]))
        text = of_text[1].add(text, _fed(block.ff_context, of_text[1].of(text, block.norm2_context)))
        image = of_image[1].add(image, _fed(block.ff, of_image[1].of(image, block.norm2)))
        return text, image

    def _single(
        self, block: Any, hidden: Tensor, modulation: "_Modulation", rotary: Tensor, packing: Packing
    ) -> Tensor:
        attn = block.attn
        projected = attn.to_qkv_mlp_proj(modulation.of(hidden, block.norm))
        turned, value = self._divided(projected[:, : 3 * self._width], attn.norm_q.eps)
        attended = self._attend(turned.mul_(self._norms[attn.norm_q]), value, rotary, packing)
        joined = torch.cat([attended, _gated(projected[:, 3 * self._width :])], dim=-1)
        return modulation.add(hidden, attn.to_out(joined))

    def _divided(self, projected: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Query, key and value [T, 3 D] -> query and key divided by their length, and value: [T, heads, channels]."""
        heads = projected.unflatten(-1, (3 * self._heads, self._channels))
        both, value = heads.split([2 * self._heads, self._heads], dim=1)
        squared = torch.linalg.vector_norm(both, dim=-1, keepdim=True).square_()
        return both * squared.add_(eps * self._channels).rsqrt_(), value

    def _attend(self, turned: Tensor, value: Tensor, rotary: Tensor, packing: Packing) -> Tensor:
        """Turn query and key in place, and attend within each sequence: [T, D], sequence order."""
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(rotary)
        query, key = turned.chunk(2, dim=1)
        return attend_each(query, key, value, packing.lengths).flatten(1)


@dataclass(frozen=True)
class _Modulation:
    """Of one norm and what comes after it; `scale` is 1 + the model's. Each [1, D] or [tokens, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def of(self, hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
        if len(self.scale) == 1:
            return F.layer_norm(hidden, norm.normalized_shape, self.scale[0], self.shift[0], norm.eps)
        return torch.addcmul(self.shift, norm(hidden), self.scale)

    def add(self, hidden: Tensor, more: Tensor) -> Tensor:
        return torch.addcmul(hidden, self.gate, more)


def _split(modulation: Tensor, width: int) -> list[_Modulation]:
    """One for every three parts of [1, ., k], each `width` wide: shift, scale, gate."""
    parts = modulation[0].split(width, dim=-1)
    return [_Modulation(parts[i], 1 + parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]


def _placed(tokens: Tensor, places: Tensor, packing: Packing) -> Tensor:
    """`tokens[places]`; a single sequence lies alike in both orders."""
    return tokens[places] if len(packing.lengths) > 1 else tokens


def _fed(feed: Flux2FeedForward, hidden: Tensor) -> Tensor:
    out: Tensor = feed.linear_out(_gated(feed.linear_in(hidden)))
    return out


def _gated(hidden: Tensor) -> Tensor:
    """Flux2SwiGLU's, in place of the first half."""
    first, second = hidden.chunk(2, dim=-1)
    return F.silu(first).mul_(second)
