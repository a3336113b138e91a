"""Attention by plain matrix products, for training on CPU: the fused kernel's backward pass is slow there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What functional.scaled_dot_product_attention computes, without dropout."""
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = (
            scores.masked_fill(~attn_mask, -1e4) if is_bool else scores + attn_mask.clamp(min=-1e4).to(scores.dtype)
        )
    return torch.softmax(scores, -1, dtype=scores.dtype) @ value.to(scores.dtype)


@contextmanager
def plain_attention(is_on: bool = True) -> Iterator[None]:
    """Within it every module attends by plain products."""
    fused = functional.scaled_dot_product_attention
    if is_on:
        functional.scaled_dot_product_attention = plain  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused
