"""Prompts to projected text tokens: tokenise as the stock pipelines do, encode, project, cache."""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from cachetools import LRUCache
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor

from kleinserve.engine.memory import Lend
from kleinserve.engine.vae import Pieces


@dataclass(frozen=True)
class Tokens:
    """A tokenised prompt: `ids` without padding, cut at the model's limit; `count` of them before the cut."""

    ids: tuple[int, ...]
    count: int

    @property
    def is_truncated(self) -> bool:
        return self.count > len(self.ids)


class Tokenizer:
    """The checkpoint's tokenizer with its pipeline's chat template. Safe to call from several threads."""

    def __init__(self, tokenizer: Any, tokens_max: int, *, is_mistral: bool):
        self._tokenizer, self._is_mistral = tokenizer, is_mistral
        self.tokens_max = tokens_max
        self._lock = threading.Lock()  # the fast tokenizers keep state

    def tokenize(self, prompt: str, appended: str = "") -> Tokens:
        """The prompt through the chat template, cut at `tokens_max` on the tokenizer's side.

        Where something is `appended`, it is kept whole, and the prompt before it is cut by as much as is too long.
        Source: _get_qwen3_prompt_embeds and _get_mistral_3_small_prompt_embeds, diffusers 0.42.1.
        """
        with self._lock:
            ids = self._ids(_joined(prompt, appended))
            count, words = len(ids), prompt
            if count > self.tokens_max and appended:
                too_long = bisect_right(
                    range(len(prompt)), self.tokens_max, key=lambda n: self._count(prompt[:n], appended)
                )
                words = prompt[: max(0, too_long - 1)]
            if count > self.tokens_max:
                ids = self._ids(_joined(words, appended), truncation=True, max_length=self.tokens_max)
        return Tokens(tuple(ids), count)

    def _count(self, prompt: str, appended: str) -> int:
        return len(self._ids(_joined(prompt, appended)))

    def _ids(self, prompt: str, **limit: Any) -> list[int]:
        text = self._mistral(prompt) if self._is_mistral else self._qwen(prompt)
        # As transformers' processors: a template that writes the first special token is not given a second one.
        first = self._tokenizer.bos_token
        add_special = not (self._is_mistral and first is not None and text.startswith(first))
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special, **limit)["input_ids"]
        return ids

    def _qwen(self, prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return str(
            self._tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )

    def _mistral(self, prompt: str) -> str:
        """As the stock pipeline's processor renders it; that processor itself would need torchvision."""
        messages = format_input(prompts=[prompt], system_message=SYSTEM_MESSAGE)[0]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))

    def padded(self, prompt: Tokens) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [1, tokens_max], padded on the tokenizer's side."""
        padding = self.tokens_max - len(prompt.ids)
        edges = (padding, 0) if self._tokenizer.padding_side == "left" else (0, padding)
        ids = torch.tensor([prompt.ids])
        return F.pad(ids, edges, value=self._tokenizer.pad_token_id), F.pad(torch.ones_like(ids), edges)


def _joined(prompt: str, appended: str) -> str:
    return prompt.rstrip(" .,") + appended if appended else prompt


class TextEncoder:
    """Prompts to contexts: the text encoder's three hidden states, projected to the transformer's width, cached."""

    def __init__(
        self,
        encoder: torch.nn.Module,
        projection: torch.nn.Module,
        tokenizer: Tokenizer,
        layers: tuple[int, int, int],
        cache_bytes_max: int,
        device: torch.device,
        lend: Lend = nullcontext,
    ):
        self.module, self._projection = encoder, projection
        self.tokenizer, self._layers, self._device, self._lend = tokenizer, layers, device, lend
        self._cache: LRUCache[tuple[int, ...], Tensor] = LRUCache(
            cache_bytes_max, getsizeof=lambda context: context.nbytes
        )

    def is_cached(self, prompt: Tokens) -> bool:
        return prompt.ids in self._cache

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Tokens]) -> Pieces[dict[tuple[int, ...], Tensor]]:
        """The context [tokens_max, D] of each by its ids, in the transformer's dtype; kept in the cache.

        Each in a pass and a piece of its own: what is kept must not depend on the company it was encoded in.
        Padding stays: trimming it would change images, since the transformer attends to it.
        """
        contexts = {p.ids: context for p in prompts if (context := self._cache.get(p.ids)) is not None}
        missing = {p.ids: p for p in prompts if p.ids not in contexts}
        with self._lend() if missing else nullcontext():
            for prompt in missing.values():
                contexts[prompt.ids] = context = self._encode(prompt)
                if context.nbytes <= self._cache.maxsize:
                    self._cache[prompt.ids] = context
                yield
        return contexts

    def _encode(self, prompt: Tokens) -> Tensor:
        ids, mask = (tensor.to(self._device) for tensor in self.tokenizer.padded(prompt))
        states = self.module(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        joined = torch.cat([states[k][0] for k in self._layers], dim=-1)  # [T, 3 × hidden]
        context: Tensor = self._projection(joined)
        return context
