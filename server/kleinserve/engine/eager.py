"""The transformer for a CPU: its sums in fewer calls, and all of them one call of TorchScript. Knows no rows."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from kleinserve.engine.attention import attend_each
from kleinserve.engine.network import Counts, Pass, modulations, per_token
from kleinserve.engine.script import scripted


class EagerNetwork:
    """The stock blocks' sums in float32, where a call costs what a small step computes.

    Query and key are one tensor, normalised and then turned by one complex product, which the compiler does not know;
    scale and shift are the norm's own, a gate and its sum are one call. Equal to the stock blocks within rounding.
    """

    def __init__(self, transformer: Flux2Transformer2DModel):
        self._transformer = transformer
        config, block = transformer.config, transformer.transformer_blocks[0]
        self._shape = Shape(
            config.num_attention_heads, config.attention_head_dim, block.norm1.eps, block.attn.norm_q.eps
        )
        self._weights = transformer.x_embedder.weight, transformer.proj_out.weight
        self._double = [self._of_double(block) for block in transformer.transformer_blocks]
        self._single = [self._of_single(block) for block in transformer.single_transformer_blocks]
        self._run = scripted(run)

    def _of_double(self, block: Any) -> "Double":
        attn = block.attn
        return Double(
            text_query=attn.add_q_proj.weight,
            text_key=attn.add_k_proj.weight,
            text_value=attn.add_v_proj.weight,
            query=attn.to_q.weight,
            key=attn.to_k.weight,
            value=attn.to_v.weight,
            text_norm=self._norm(attn.norm_added_q, attn.norm_added_k),
            norm=self._norm(attn.norm_q, attn.norm_k),
            text_out=attn.to_add_out.weight,
            out=attn.to_out[0].weight,
            text_feed_in=block.ff_context.linear_in.weight,
            text_feed_out=block.ff_context.linear_out.weight,
            feed_in=block.ff.linear_in.weight,
            feed_out=block.ff.linear_out.weight,
        )

    def _of_single(self, block: Any) -> "Single":
        attn = block.attn
        return Single(attn.to_qkv_mlp_proj.weight, self._norm(attn.norm_q, attn.norm_k), attn.to_out.weight)

    def _norm(self, query: nn.RMSNorm, key: nn.RMSNorm) -> Tensor:
        """The weights [2 heads, head channels] of queries and keys that have been divided by their length."""
        shape = self._shape.heads, self._shape.channels
        weights = torch.cat([query.weight.detach().expand(shape), key.weight.detach().expand(shape)])
        return weights * self._shape.channels**0.5

    def rotary(self, positions: Tensor) -> list[Tensor]:
        """One complex number for each pair of channels: complex64 [tokens, 1, head channels / 2]."""
        cosines, sines = self._transformer.pos_embed(positions)
        return [torch.complex(cosines[:, None, ::2], sines[:, None, ::2])]

    def level(self, sigma: float, guidance_scale: float) -> "Level":
        made = modulations(self._transformer, sigma, guidance_scale)
        text, text_feed = self._split(made.text)
        image, image_feed = self._split(made.image)
        [single] = self._split(made.single)
        scale, shift = made.last.chunk(2, dim=-1)  # in this order here, and without a gate
        return Level(text, text_feed, image, image_feed, single, Modulation(shift, 1 + scale, shift[:, :0]))

    def _split(self, modulation: Tensor) -> list["Modulation"]:
        """One for every three parts of [1, k], each as wide as a token: shift, scale, gate."""
        parts = modulation.split(self._shape.heads * self._shape.channels, dim=-1)
        return [Modulation(parts[i], 1 + parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]

    def velocities(self, latents: list[Tensor], levels: list["Level"], of: list[int], given: Pass) -> list[Tensor]:
        return self._run(
            latents,
            given.references,
            given.context,
            levels,
            of,
            given.counts,
            given.rotary[0],
            given.packing.order,
            given.packing.inverse,
            given.packing.runs,
            given.places,
            *self._weights,
            self._double,
            self._single,
            self._shape,
        )


class Shape(NamedTuple):
    """Of every block; `epsilon` of its layer norms, `epsilon_qk` of its queries' and keys' norms."""

    heads: int
    channels: int
    epsilon: float
    epsilon_qk: float


class Modulation(NamedTuple):
    """Of one norm and what comes after it; `scale` is 1 + the model's. Each [1, D] or [tokens, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Level(NamedTuple):
    """A noise level's modulations: of both norms of the double blocks' streams, the single blocks', the last norm's."""

    text: Modulation
    text_feed: Modulation
    image: Modulation
    image_feed: Modulation
    single: Modulation
    last: Modulation


class Double(NamedTuple):
    """A double block's weights [out, in]; of its norms see `EagerNetwork`."""

    text_query: Tensor
    text_key: Tensor
    text_value: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    text_norm: Tensor
    norm: Tensor
    text_out: Tensor
    out: Tensor
    text_feed_in: Tensor
    text_feed_out: Tensor
    feed_in: Tensor
    feed_out: Tensor


class Single(NamedTuple):
    """A single block's weights, likewise."""

    projection: Tensor
    norm: Tensor
    out: Tensor


def run(
    latents: list[Tensor],
    references: list[Tensor],
    context: Tensor,
    levels: list[Level],
    of: list[int],
    counts: Counts,
    rotary: Tensor,
    order: Tensor,
    inverse: Tensor,
    runs: list[tuple[int, int]],
    places: Tensor,
    embedder: Tensor,
    projection: Tensor,
    doubles: list[Double],
    singles: list[Single],
    shape: Shape,
) -> list[Tensor]:
    """`Network.velocities` with all that it needs, for TorchScript.

    Source: Flux2Transformer2DModel.forward, its blocks and their attention, diffusers 0.42.1.
    """
    parts: list[Tensor] = []
    for one, reference in zip(latents, references):  # noqa: B905  # TorchScript knows no strict
        parts.append(F.linear(one, embedder))
        parts.append(reference)
    text, image = context, torch.cat(parts)
    count, width = len(text), shape.heads * shape.channels
    is_one = len(latents) == 1  # which lies alike in both orders
    of_text = _spread([level.text for level in levels], of, counts.texts)
    of_text_feed = _spread([level.text_feed for level in levels], of, counts.texts)
    of_image = _spread([level.image for level in levels], of, counts.images)
    of_image_feed = _spread([level.image_feed for level in levels], of, counts.images)
    for double in doubles:
        one, two = _normed(text, of_text, shape), _normed(image, of_image, shape)
        weights = double.text_query, double.text_key, double.text_value
        texts = torch.cat([F.linear(one, weights[0]), F.linear(one, weights[1]), F.linear(one, weights[2])], dim=-1)
        weights = double.query, double.key, double.value
        images = torch.cat([F.linear(two, weights[0]), F.linear(two, weights[1]), F.linear(two, weights[2])], dim=-1)
        turned, value = _divided(torch.cat([texts, images]), shape)
        turned[:count].mul_(double.text_norm)
        turned[count:].mul_(double.norm)
        if not is_one:
            turned, value = turned[order], value[order]
        attended = _attended(turned, value, rotary, runs)
        if not is_one:
            attended = attended[inverse]
        text = torch.addcmul(text, of_text.gate, F.linear(attended[:count], double.text_out))
        image = torch.addcmul(image, of_image.gate, F.linear(attended[count:], double.out))
        text = _fed(text, of_text_feed, double.text_feed_in, double.text_feed_out, shape)
        image = _fed(image, of_image_feed, double.feed_in, double.feed_out, shape)
    hidden = torch.cat([text, image])
    if not is_one:
        hidden = hidden[order]
    of_all = _spread([level.single for level in levels], of, counts.both)
    for single in singles:
        projected = F.linear(_normed(hidden, of_all, shape), single.projection)
        turned, value = _divided(projected[:, : 3 * width], shape)
        attended = _attended(turned.mul_(single.norm), value, rotary, runs)
        joined = torch.cat([attended, _gated(projected[:, 3 * width :])], dim=-1)
        hidden = torch.addcmul(hidden, of_all.gate, F.linear(joined, single.out))
    of_outputs = _spread([level.last for level in levels], of, counts.outputs)
    return list(F.linear(_normed(hidden[places], of_outputs, shape), projection).split(counts.outputs))


def _spread(values: list[Modulation], of: list[int], lengths: list[int]) -> Modulation:
    """Of each level -> of each token."""
    return Modulation(
        per_token([value.shift for value in values], of, lengths),
        per_token([value.scale for value in values], of, lengths),
        per_token([value.gate for value in values], of, lengths),
    )


def _normed(hidden: Tensor, by: Modulation, shape: Shape) -> Tensor:
    width = [hidden.shape[1]]
    if len(by.scale) == 1:
        return F.layer_norm(hidden, width, by.scale[0], by.shift[0], shape.epsilon)
    return torch.addcmul(by.shift, F.layer_norm(hidden, width, None, None, shape.epsilon), by.scale)


def _divided(projected: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Query, key and value [T, 3 D] -> query and key divided by their length, and value: [T, heads, channels]."""
    heads = projected.unflatten(-1, [3 * shape.heads, shape.channels])
    both, value = heads.split([2 * shape.heads, shape.heads], dim=1)
    squared = torch.linalg.vector_norm(both, dim=-1, keepdim=True).square_()
    return both * squared.add_(shape.epsilon_qk * shape.channels).rsqrt_(), value


def _attended(turned: Tensor, value: Tensor, rotary: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """Turn query and key in place, and attend within each sequence: [T, D], sequence order."""
    torch.view_as_complex(turned.unflatten(-1, [-1, 2])).mul_(rotary)
    query, key = turned.chunk(2, dim=1)
    return attend_each(query, key, value, runs).flatten(1)


def _fed(hidden: Tensor, by: Modulation, feed_in: Tensor, feed_out: Tensor, shape: Shape) -> Tensor:
    """The feed-forward of a double block, added."""
    return torch.addcmul(hidden, by.gate, F.linear(_gated(F.linear(_normed(hidden, by, shape), feed_in)), feed_out))


def _gated(hidden: Tensor) -> Tensor:
    """Flux2SwiGLU's, in place of the first half."""
    first, second = hidden.chunk(2, dim=-1)
    return F.silu(first).mul_(second)
