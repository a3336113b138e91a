"""Reference images to transformer tokens, cached by content. Knows pictures already cut to the model's size."""

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from kleinserve.core import Pixels, Reference
from kleinserve.engine.vae import Vae


class ReferenceEncoder:
    """References to embedded tokens [T, D] in the transformer's dtype, by the VAE and the transformer's embedder."""

    def __init__(self, vae: Vae, embedder: torch.nn.Linear, cache_bytes_max: int):
        self._vae, self._embedder = vae, embedder
        self._cache: LRUCache[bytes, Tensor] = LRUCache(cache_bytes_max, getsizeof=lambda tokens: tokens.nbytes)

    def is_cached(self, reference: Reference) -> bool:
        return reference.digest in self._cache

    @torch.inference_mode()
    def encode(self, reference: Reference) -> Tensor:
        """Tokens [T, D], T = pixels / 256; kept in the cache.

        Embedding each token alone is what the transformer does at every step, so once is enough.
        """
        tokens = self._cache.get(reference.digest)
        if tokens is None:
            latents = self._vae.encode(to_tensor(reference.pixels)[None])[0]
            tokens = self._embedder(latents.to(self._embedder.weight.dtype))
            if reference.digest and tokens.nbytes <= self._cache.maxsize:
                self._cache[reference.digest] = tokens
        return tokens


def to_tensor(pixels: Pixels) -> Tensor:
    """8-bit pixels -> float32 [channels, H, W] in −1..1, as the stock image processor normalises."""
    array = np.frombuffer(pixels.data, np.uint8).reshape(pixels.size.height, pixels.size.width, pixels.channels)
    return torch.from_numpy(array.astype(np.float32) / 255.0).permute(2, 0, 1) * 2 - 1
