"""Attention of many requests packed side by side: processors for the stock blocks. Knows sequences, not images.

A packed pass has batch size 1 and two token orders. Stream order is what the double blocks compute in: every
sequence's text, then every sequence's image tokens. Sequence order is what attention and the single blocks compute in:
the text and image of sequence 0, then of sequence 1, and so on.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, groupby, pairwise
from typing import Any

import structlog
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from kleinserve.engine.script import scripted

log = structlog.get_logger()


@dataclass(frozen=True)
class Packing:
    """Where each sequence's tokens lie.

    lengths: tokens per sequence, text and image. runs: how many neighbours have one length, and that length.
    order[i]: stream position of sequence position i. inverse: back.
    ends: int32 [sequences + 1], cumulative lengths, for varlen_attn. host_ends: the same on the CPU.
    """

    lengths: tuple[int, ...]
    runs: list[tuple[int, int]]
    order: Tensor
    inverse: Tensor
    ends: Tensor
    host_ends: Tensor

    @classmethod
    def of(cls, text_lengths: list[int], image_lengths: list[int], device: torch.device) -> "Packing":
        ordered = scripted(_ordered) if device.type == "cpu" else _ordered
        order, inverse = ordered(text_lengths, image_lengths, device)
        lengths = tuple(t + i for t, i in zip(text_lengths, image_lengths, strict=True))
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")
        return cls(lengths, _runs(lengths), order, inverse, ends.to(device), ends)


def _ordered(texts: list[int], images: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Order and inverse of sequences with so many tokens of text and of images. TorchScript too."""
    parts: list[Tensor] = []
    text, image = 0, sum(texts)
    for i in range(len(texts)):
        parts.append(torch.arange(text, text + texts[i], device=device))
        parts.append(torch.arange(image, image + images[i], device=device))
        text += texts[i]
        image += images[i]
    order = torch.cat(parts)
    return order, torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))


@cache
def varlen(device: torch.device, dtype: torch.dtype, head_channels: int) -> Callable[..., Any] | None:
    """torch's varlen_attn as it runs there; None where it does not, and each sequence attends by itself.

    Tried once, with FA3 where it is installed. One split: else a sequence's bits would depend on its company.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if torch.cuda.get_device_capability(device)[0] == 9:
        with suppress(Exception):  # not installed, or built for another torch
            activate_flash_attention_impl("FA3")
    query = torch.zeros(16, 1, head_channels, dtype=dtype, device=device)
    ends = torch.tensor([0, 16], dtype=torch.int32).to(device)
    error: Exception
    for attention in (partial(varlen_attn, num_splits=1), varlen_attn):
        try:
            attention(query, query, query, ends, ends, 16, 16)
        except Exception as refused:
            error = refused
        else:
            return attention
    log.warning("no variable-length attention: sequences attend one by one", device=str(device), error=str(error)[:200])
    return None


def attend_each(query: Tensor, key: Tensor, value: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """Attention within each sequence, one call for each run of a Packing. [T, heads, head channels], in and out.

    TorchScript too.
    """
    parts: list[Tensor] = []
    start = 0
    for count, length in runs:
        stop = start + count * length
        q = query[start:stop].unflatten(0, [count, length]).transpose(1, 2)
        k = key[start:stop].unflatten(0, [count, length]).transpose(1, 2)
        v = value[start:stop].unflatten(0, [count, length]).transpose(1, 2)
        parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _runs(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """How many neighbours have one length, and that length."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


@torch.library.custom_op("kleinserve::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, host_ends: Tensor) -> Tensor:
    """Attention within each sequence. [1, T, heads, head channels] in sequence order, in and out; ends of a Packing.

    One operator to the compiler: how many sequences there are and how long they are is no part of the compiled code.
    """
    bounds: list[int] = host_ends.tolist()
    lengths = [stop - start for start, stop in pairwise(bounds)]
    packed = varlen(query.device, query.dtype, query.shape[-1])
    if packed is not None:
        out = packed(query[0], key[0], value[0], ends, ends, max(lengths), max(lengths))
        assert isinstance(out, Tensor)
        return out[None]
    return attend_each(query[0], key[0], value[0], _runs(lengths))[None].contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, host_ends: Tensor) -> Tensor:
    return torch.empty_like(query)


class PackedDoubleProcessor:
    """Attention of a double block: in and out in stream order, attended in sequence order."""

    def __call__(
        self,
        attn: Flux2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_rotary_emb: tuple[Tensor, Tensor],
        packing: Packing,
    ) -> tuple[Tensor, Tensor]:
        image = [f(hidden_states).unflatten(-1, (-1, attn.head_dim)) for f in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            f(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim))
            for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        query = torch.cat([attn.norm_added_q(text[0]), attn.norm_q(image[0])], dim=1)[:, packing.order]
        key = torch.cat([attn.norm_added_k(text[1]), attn.norm_k(image[1])], dim=1)[:, packing.order]
        value = torch.cat([text[2], image[2]], dim=1)[:, packing.order]
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        out = attend(query, key, value, packing.ends, packing.host_ends).flatten(2, 3)[:, packing.inverse]
        text_out, image_out = out.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[1](attn.to_out[0](image_out)), attn.to_add_out(text_out)


class PackedSingleProcessor:
    """Attention and feed-forward of a single block: everything in sequence order."""

    def __call__(
        self,
        attn: Flux2ParallelSelfAttention,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_rotary_emb: tuple[Tensor, Tensor],
        packing: Packing,
    ) -> Tensor:
        projected = attn.to_qkv_mlp_proj(hidden_states)
        qkv, feed = projected.split([3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor], dim=-1)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in qkv.chunk(3, dim=-1))
        query = apply_rotary_emb(attn.norm_q(query), image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(attn.norm_k(key), image_rotary_emb, sequence_dim=1)
        out = attend(query, key, value, packing.ends, packing.host_ends).flatten(2, 3)
        joined: Tensor = attn.to_out(torch.cat([out, attn.mlp_act_fn(feed)], dim=-1))
        return joined
