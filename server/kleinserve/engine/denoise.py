"""One denoising step over any set of rows: different sizes, step counts, references and noise levels in one pass.

The engine's heart. Knows rows, not requests: no deadlines, no callers.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from cachetools import LRUCache
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from kleinserve.core import EDGE_MULTIPLE, Size
from kleinserve.engine import memory
from kleinserve.engine.attention import Packing, varlen
from kleinserve.engine.eager import EagerNetwork
from kleinserve.engine.network import Counts, Network, Pass, StockNetwork
from kleinserve.engine.script import scripted
from kleinserve.engine.vae import Pieces, finished

REFERENCE_TIME_STRIDE = 10  # position ids: references lie at T = 10, 20, 30, 40, the output at 0
_LEVELS_KEPT = 256  # noise levels: of klein 9B 140 KB each
_LEVELS_AHEAD = 64  # of a row: made before its first step; later ones when they come
_ROTARY_BYTES = 64 * 1024 * 1024  # of rotary embeddings of sequences: a megapixel's are 5 MB


@dataclass(eq=False)
class Row:
    """One image being denoised on the device.

    latents: float32 [T, C], T = size.tokens, rows of the picture first (h, then w); BN-normalised.
    references: [R, D] tokens of all references, already embedded to the transformer's width D; R may be 0.
    contexts: prompt embeddings [text tokens, D], projected; one, or (conditional, empty prompt) for real CFG.
    sigmas: steps + 1 noise levels, 1 to 0. step: steps done.
    estimate: float32 [T, C], the last step's x0 estimate.
    levels, rotary: what the network makes of its next steps' noise levels, and of each context's sequence.
    """

    size: Size
    latents: Tensor
    references: Tensor
    reference_sizes: tuple[Size, ...]
    contexts: tuple[Tensor, ...]
    sigmas: tuple[float, ...]
    guidance_scale: float
    step: int = 0
    estimate: Tensor | None = None
    levels: deque[Any] = field(default_factory=deque)
    rotary: list[list[Tensor]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def is_done(self) -> bool:
        return self.step >= self.steps

    @property
    def tokens(self) -> int:
        """Tokens this row adds to a step, text and references and both sequences of CFG included."""
        return sum(len(c) + len(self.latents) + len(self.references) for c in self.contexts)


def noise(size: Size, channels: int, seed: int) -> Tensor:
    """The stock pipeline's first latents of `seed`: float32 [T, C], drawn on the CPU in shape (1, C, H/16, W/16).

    Source: Flux2KleinPipeline.prepare_latents and _pack_latents. Differs: always drawn in float32.
    """
    shape = (1, channels, size.height // EDGE_MULTIPLE, size.width // EDGE_MULTIPLE)
    drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
    return drawn[0].flatten(1).T.contiguous()


def image_positions(time: int, size: Size, device: torch.device) -> Tensor:
    """Position ids [T, 4] of an image's tokens: (time, h, w, 0)."""
    rows, columns = size.height // EDGE_MULTIPLE, size.width // EDGE_MULTIPLE
    positions = torch.zeros(rows, columns, 4, dtype=torch.long, device=device)
    positions[..., 0] = time
    positions[..., 1] = torch.arange(rows, device=device)[:, None]
    positions[..., 2] = torch.arange(columns, device=device)
    return positions.flatten(0, 1)


def text_positions(tokens: int, device: torch.device) -> Tensor:
    """Position ids [tokens, 4] of a prompt: (0, 0, 0, l)."""
    positions = torch.zeros(tokens, 4, dtype=torch.long, device=device)
    positions[:, 3] = torch.arange(tokens, device=device)
    return positions


class Denoiser:
    """The transformer, as the stock pipeline steps it; `is_compiled`: its blocks are, or will be."""

    def __init__(self, transformer: Flux2Transformer2DModel, *, is_compiled: bool = False):
        self.transformer = transformer
        self.device, self.dtype = transformer.device, transformer.dtype
        is_eager = self.device.type == "cpu" and self.dtype == torch.float32 and not is_compiled
        self._network: Network = EagerNetwork(transformer) if is_eager else StockNetwork(transformer)
        self._level = lru_cache(_LEVELS_KEPT)(self._make_level)
        self._kept: LRUCache[Any, list[Tensor]] = LRUCache(_ROTARY_BYTES, getsizeof=_nbytes)
        self._moved = scripted(_moved) if is_eager else _moved
        self._places = scripted(_places) if is_eager else _places
        double = sum(p.numel() for p in transformer.transformer_blocks.parameters()) / 2  # a token is in one stream
        self._weights = double + sum(p.numel() for p in transformer.single_transformer_blocks.parameters())
        self._layers = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        self._rows: tuple[Row, ...] = ()
        self._pass: Pass | None = None
        varlen(self.device, self.dtype, transformer.config.attention_head_dim)  # found out now, not in a step

    def work(self, tokens: int) -> float:
        """GFLOP of one sequence's part of a step: two per weight and token, and attention's products of all pairs."""
        return (2 * self._weights * tokens + 4 * self.transformer.inner_dim * self._layers * tokens**2) / 1e9

    @torch.inference_mode()
    def begin(self, row: Row) -> Pieces[None]:
        """Make what its steps need of its noise levels and places, in pieces; it is kept for others that are alike."""
        levels: deque[Any] = deque()
        for step in range(min(row.steps, _LEVELS_AHEAD)):
            levels.append(self._level_of(row, step))
            yield
        row.rotary = [self._rotary(len(context), row.size, row.reference_sizes) for context in row.contexts]
        row.levels = levels

    def _level_of(self, row: Row, step: int) -> Any:
        is_embedded = self.transformer.config.guidance_embeds
        return self._level(row.sigmas[step], row.guidance_scale if is_embedded else 1.0)

    def _make_level(self, sigma: float, guidance_scale: float) -> Any:
        """By one thread, whoever makes it and whoever else computes: what is kept is always the same."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._network.level(sigma, guidance_scale)
        finally:
            torch.set_num_threads(threads)

    def _rotary(self, texts: int, size: Size, reference_sizes: tuple[Size, ...]) -> list[Tensor]:
        made = self._kept.get((texts, size, reference_sizes))
        if made is None:
            made = self._of_sequence(texts, size, reference_sizes)
            if _nbytes(made) <= self._kept.maxsize:
                self._kept[texts, size, reference_sizes] = made
        return made

    def _of_sequence(self, texts: int, size: Size, reference_sizes: tuple[Size, ...]) -> list[Tensor]:
        positions = [text_positions(texts, self.device), image_positions(0, size, self.device)]
        for i, reference in enumerate(reference_sizes):
            positions.append(image_positions(REFERENCE_TIME_STRIDE * (i + 1), reference, self.device))
        return self._network.rotary(torch.cat(positions))

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> None:
        """Advance every row by one Euler step, in place: latents, step, estimate. Then the device has done it.

        Cost:   one transformer pass over sum(row.tokens).
        Raises: torch.OutOfMemoryError; then no row has moved.
        Source: Flux2KleinPipeline.__call__ and FlowMatchEulerDiscreteScheduler.step, diffusers 0.42.1.
        """
        for row in rows:
            if not row.rotary:
                finished(self.begin(row))
            if not row.levels:
                row.levels.append(self._level_of(row, row.step))
        given = self._prepare(tuple(rows))
        sequences = [row for row in rows for _ in row.contexts]
        named = [(row.sigmas[row.step], row.guidance_scale) for row in sequences]
        levels = {name: row.levels[0] for name, row in zip(named, sequences, strict=True)}
        places = {name: i for i, name in enumerate(levels)}
        latents, of = [row.latents for row in sequences], [places[name] for name in named]
        velocities = _guided(rows, self._network.velocities(latents, list(levels.values()), of, given))
        sigmas, following = [row.sigmas[row.step] for row in rows], [row.sigmas[row.step + 1] for row in rows]
        moved = self._moved([row.latents for row in rows], velocities, sigmas, following)
        memory.finish(self.device)  # what fails there may fail late; and old latents are freed for all streams
        for row, (estimate, latents_) in zip(rows, moved, strict=True):  # nothing fails from here on
            row.estimate, row.latents, row.step = estimate, latents_, row.step + 1
            row.levels.popleft()
        if any(row.is_done for row in rows):
            self._rows, self._pass = (), None  # this set does not come again: let its memory go

    def _prepare(self, rows: tuple[Row, ...]) -> Pass:
        if self._pass is not None and self._rows == rows:
            return self._pass
        self._rows, self._pass = (), None  # before the new one is made: there need not be room for both
        sequences = [(row, context) for row in rows for context in row.contexts]
        texts = [len(context) for _, context in sequences]
        outputs = [len(row.latents) for row, _ in sequences]
        images = [len(row.latents) + len(row.references) for row, _ in sequences]
        packing = Packing.of(texts, images, self.device)
        both = list(packing.lengths)
        rotary = [part for row in rows for part in row.rotary]
        made = Pass(
            Counts(texts, images, both, outputs),
            packing,
            torch.cat([context for _, context in sequences]),
            [row.references for row, _ in sequences],
            [torch.cat(parts) for parts in zip(*rotary, strict=True)],
            self._places(texts, both, outputs, self.device),
        )
        self._rows, self._pass = rows, made
        return made


def _nbytes(parts: list[Tensor]) -> int:
    return sum(part.nbytes for part in parts)


def _places(texts: list[int], both: list[int], outputs: list[int], device: torch.device) -> Tensor:
    """Sequence positions of the outputs, which come after each sequence's text. TorchScript too."""
    parts: list[Tensor] = []
    start = 0
    for i in range(len(texts)):
        parts.append(torch.arange(start + texts[i], start + texts[i] + outputs[i], device=device))
        start += both[i]
    return torch.cat(parts)


def _moved(
    latents: list[Tensor], velocities: list[Tensor], sigmas: list[float], following: list[float]
) -> list[tuple[Tensor, Tensor]]:
    """The estimate and the next latents of each row. TorchScript too."""
    moved: list[tuple[Tensor, Tensor]] = []
    for i in range(len(latents)):
        estimate = latents[i] - sigmas[i] * velocities[i]
        moved.append((estimate, latents[i] + (following[i] - sigmas[i]) * velocities[i]))
    return moved


def _guided(rows: Sequence[Row], velocities: list[Tensor]) -> list[Tensor]:
    """Classifier-free guidance where a row has two sequences: empty + scale × (conditional − empty)."""
    ends = [0, *accumulate(len(row.contexts) for row in rows)]
    guided = []
    for row, start in zip(rows, ends, strict=False):
        velocity = velocities[start]
        if len(row.contexts) == 2:
            empty = velocities[start + 1]
            velocity = empty + row.guidance_scale * (velocity - empty)
        guided.append(velocity)
    return guided
