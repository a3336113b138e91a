"""Prompts to projected text tokens: tokenise as the stock pipelines do, encode, project, cache."""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor


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

    def tokenize(self, prompt: str) -> Tokens:
        """The prompt through the chat template, cut at `tokens_max` on the tokenizer's side.

        Source: _get_qwen3_prompt_embeds and _get_mistral_3_small_prompt_embeds, diffusers 0.42.1.
        """
        with self._lock:
            text = self._mistral(prompt) if self._is_mistral else self._qwen(prompt)
            # As transformers' processors: a template that writes the first special token is not given a second one.
            first = self._tokenizer.bos_token
            add_special = not (self._is_mistral and first is not None and text.startswith(first))
            ids = self._tokenizer(text, add_special_tokens=add_special)["input_ids"]
            count = len(ids)
            if count > self.tokens_max:
                limit = {"truncation": True, "max_length": self.tokens_max}
                ids = self._tokenizer(text, add_special_tokens=add_special, **limit)["input_ids"]
        return Tokens(tuple(ids), count)

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

    def padded(self, prompts: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [B, tokens_max], padded on the tokenizer's side."""
        ids = torch.full((len(prompts), self.tokens_max), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            n = len(prompt.ids)
            place = slice(self.tokens_max - n, None) if self._tokenizer.padding_side == "left" else slice(0, n)
            ids[row, place] = torch.tensor(prompt.ids)
            mask[row, place] = 1
        return ids, mask


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
    ):
        self.module, self._projection = encoder, projection
        self.tokenizer, self._layers, self._device = tokenizer, layers, device
        self._cache: LRUCache[tuple[int, ...], Tensor] = LRUCache(
            cache_bytes_max, getsizeof=lambda context: context.nbytes
        )

    def cached(self, prompt: Tokens) -> Tensor | None:
        return self._cache.get(prompt.ids)

    @torch.inference_mode()
    def encode(self, prompts: list[Tokens]) -> list[Tensor]:
        """Contexts [tokens_max, D] in the transformer's dtype, one pass for all prompts; kept in the cache.

        Padding stays: trimming it would change images, since the transformer attends to it.
        """
        ids, mask = (t.to(self._device) for t in self.tokenizer.padded(prompts))
        states = self.module(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        joined = torch.stack([states[k] for k in self._layers], dim=1)  # [B, 3, T, hidden]
        contexts = list(self._projection(joined.permute(0, 2, 1, 3).flatten(2)))
        for prompt, context in zip(prompts, contexts, strict=True):
            if context.nbytes <= self._cache.maxsize:
                self._cache[prompt.ids] = context.clone()  # a slice would keep the whole batch alive
        return contexts
