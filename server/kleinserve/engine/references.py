"""Reference images to transformer tokens, cached by content. Knows pictures already cut to the model's size."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from cachetools import LRUCache
from torch import Tensor

from kleinserve.core import Reference
from kleinserve.engine.memory import Lend
from kleinserve.engine.pixels import to_tensor
from kleinserve.engine.vae import Pieces, Vae


class ReferenceEncoder:
    """References to embedded tokens [T, D] in the transformer's dtype, by the VAE and the transformer's embedder."""

    def __init__(self, vae: Vae, embedder: torch.nn.Linear, cache_bytes_max: int, lend: Lend):
        self._vae, self._embedder, self._lend = vae, embedder, lend
        self._cache: LRUCache[bytes, Tensor] = LRUCache(cache_bytes_max, getsizeof=lambda tokens: tokens.nbytes)

    def is_cached(self, reference: Reference) -> bool:
        return reference.digest in self._cache

    def encode(self, references: Sequence[Reference]) -> Pieces[list[Tensor]]:
        """Tokens [T, D] of each, T = pixels / 256; kept in the cache, and in pieces.

        Embedding each token alone is what the transformer does at every step, so once is enough.
        """
        lend = nullcontext if all(map(self.is_cached, references)) else self._lend
        encoded = []
        with lend():
            for reference in references:
                tokens = self._cache.get(reference.digest)
                encoded.append((yield from self._encode(reference)) if tokens is None else tokens)
        return encoded

    def _encode(self, reference: Reference) -> Pieces[Tensor]:
        latents = yield from self._vae.encode(to_tensor(reference.pixels)[None])
        tokens: Tensor = self._embedder(latents[0].to(self._embedder.weight.dtype))
        if reference.digest and tokens.nbytes <= self._cache.maxsize:
            self._cache[reference.digest] = tokens
        yield
        return tokens
