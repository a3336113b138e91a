"""One denoising step over any set of rows: different sizes, step counts, references and noise levels in one pass.

The engine's heart. Knows rows, not requests: no deadlines, no callers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from kleinserve.core import EDGE_MULTIPLE, Size
from kleinserve.engine import memory
from kleinserve.engine.attention import Packing, varlen
from kleinserve.engine.blocks import Blocks, Modulations, StockBlocks
from kleinserve.engine.eager import EagerBlocks

REFERENCE_TIME_STRIDE = 10  # position ids: references lie at T = 10, 20, 30, 40, the output at 0


@dataclass(eq=False)
class Row:
    """One image being denoised on the device.

    latents: float32 [T, C], T = size.tokens, rows of the picture first (h, then w); BN-normalised.
    references: [R, D] tokens of all references, already embedded to the transformer's width D; R may be 0.
    contexts: prompt embeddings [text tokens, D], projected; one, or (conditional, empty prompt) for real CFG.
    sigmas: steps + 1 noise levels, 1 to 0. step: steps done.
    estimate: float32 [T, C], the last step's x0 estimate.
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


@dataclass(frozen=True, eq=False)
class Pass:
    """What one set of rows needs at every step while the set stays the same.

    sequences: the row of each. texts, images, outputs: tokens of each sequence, outputs being those of the images that
    are denoised. rotary: the blocks' own. context: [1, all text tokens, D], stream order. places: sequence positions of
    the outputs.
    """

    rows: tuple[Row, ...]
    sequences: tuple[Row, ...]
    texts: list[int]
    images: list[int]
    outputs: list[int]
    packing: Packing
    rotary: Any
    context: Tensor
    places: Tensor


class Denoiser:
    """The stock transformer with packed attention; `is_compiled`: its blocks are, or will be."""

    def __init__(self, transformer: Flux2Transformer2DModel, *, is_compiled: bool = False):
        self.transformer = transformer
        self.device, self.dtype = transformer.device, transformer.dtype
        is_eager = self.device.type == "cpu" and self.dtype == torch.float32 and not is_compiled
        self._blocks: Blocks = EagerBlocks(transformer) if is_eager else StockBlocks(transformer)
        double = sum(p.numel() for p in transformer.transformer_blocks.parameters()) / 2  # a token is in one stream
        self._weights = double + sum(p.numel() for p in transformer.single_transformer_blocks.parameters())
        self._layers = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        self._pass: Pass | None = None
        varlen(self.device, self.dtype, transformer.config.attention_head_dim)  # found out now, not in a step

    def work(self, tokens: int) -> float:
        """GFLOP of one sequence's part of a step: two per weight and token, and attention's products of all pairs."""
        return (2 * self._weights * tokens + 4 * self.transformer.inner_dim * self._layers * tokens**2) / 1e9

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> None:
        """Advance every row by one Euler step, in place: latents, step, estimate. Then the device has done it.

        Cost:   one transformer pass over sum(row.tokens).
        Raises: torch.OutOfMemoryError; then no row has moved.
        Source: Flux2KleinPipeline.__call__ and FlowMatchEulerDiscreteScheduler.step, diffusers 0.42.1.
        """
        velocities = self._velocities(self._prepare(tuple(rows)))
        moved = []
        for row, velocity in zip(rows, velocities, strict=True):
            sigma, following = row.sigmas[row.step], row.sigmas[row.step + 1]
            moved.append((row.latents - sigma * velocity, row.latents + (following - sigma) * velocity))
        memory.finish(self.device)  # what fails there may fail late; and old latents are freed for all streams
        for row, (estimate, latents) in zip(rows, moved, strict=True):  # nothing fails from here on
            row.estimate, row.latents, row.step = estimate, latents, row.step + 1
        if any(row.is_done for row in rows):
            self._pass = None  # this set does not come again: let its memory go

    def _prepare(self, rows: tuple[Row, ...]) -> Pass:
        if self._pass is not None and self._pass.rows == rows:
            return self._pass
        self._pass = None  # before the new one is made: there need not be room for both
        device, pairs = self.device, [(row, context) for row in rows for context in row.contexts]
        texts = [len(context) for _, context in pairs]
        outputs = [len(row.latents) for row, _ in pairs]
        images = [len(row.latents) + len(row.references) for row, _ in pairs]
        positions, places, start = [], [], 0
        for row, context in pairs:
            positions += [text_positions(len(context), device), image_positions(0, row.size, device)]
            for i, size in enumerate(row.reference_sizes):
                positions.append(image_positions(REFERENCE_TIME_STRIDE * (i + 1), size, device))
            start += len(context)
            places.append(torch.arange(start, start + len(row.latents), device=device))
            start += len(row.latents) + len(row.references)
        self._pass = Pass(
            rows,
            tuple(row for row, _ in pairs),
            texts,
            images,
            outputs,
            Packing.of(texts, images, device),
            self._blocks.rotary(torch.cat(positions)),
            torch.cat([context for _, context in pairs])[None],
            torch.cat(places),
        )
        return self._pass

    def _velocities(self, prepared: Pass) -> list[Tensor]:
        """The predicted velocity of each row, float32 [T, C], guidance applied."""
        model, rows, packing, sequences = self.transformer, prepared.rows, prepared.packing, prepared.sequences
        levels = list(dict.fromkeys(_level(row) for row in rows))  # modulation is computed once for each
        of = [levels.index(_level(row)) for row in sequences]
        embedding = self._time_embedding(levels)
        embedded = [model.x_embedder(row.latents.to(self.dtype)) for row in rows]
        image = torch.cat(
            [part for row, e in zip(rows, embedded, strict=True) for _ in row.contexts for part in (e, row.references)]
        )[None]
        modulations = Modulations(
            _per_token(model.double_stream_modulation_img(embedding), of, prepared.images),
            _per_token(model.double_stream_modulation_txt(embedding), of, prepared.texts),
            _per_token(model.single_stream_modulation(embedding), of, packing.lengths),
        )
        hidden = self._blocks(prepared.context, image, modulations, prepared.rotary, packing)

        # AdaLayerNormContinuous, with its scale and shift per token: scale comes first here, unlike in the blocks.
        norm = model.norm_out
        scale, shift = _per_token(norm.linear(norm.silu(embedding)), of, prepared.outputs).chunk(2, dim=-1)
        hidden = norm.norm(hidden[:, prepared.places]) * (1 + scale) + shift
        velocity = list(model.proj_out(hidden)[0].float().split(prepared.outputs))
        return _guided(rows, velocity)

    def _time_embedding(self, levels: list[tuple[float, float]]) -> Tensor:
        """[levels, D] of noise levels and guidance scales. Made on the device: nothing is copied there in a step."""
        sigma, scale = (torch.stack([self._full(value) for value in values]) for values in zip(*levels, strict=True))
        # The stock pipeline rounds 1000 sigma to the model's dtype, divides, and the model multiplies again.
        time = (sigma * 1000).to(self.dtype) / 1000 * 1000
        guidance = scale.to(self.dtype) * 1000 if self.transformer.config.guidance_embeds else None
        embedding: Tensor = self.transformer.time_guidance_embed(time, guidance)
        return embedding

    def _full(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float32, device=self.device)


def _level(row: Row) -> tuple[float, float]:
    return row.sigmas[row.step], row.guidance_scale


def _per_token(values: Tensor, of: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """[levels, k] -> [1, tokens, k]: sequence i has `lengths[i]` tokens of level `of[i]`.

    A single level stays [1, 1, k] and broadcasts.
    """
    if len(values) == 1:
        return values[:, None]
    return torch.cat([values[level].expand(length, -1) for level, length in zip(of, lengths, strict=True)])[None]


def _guided(rows: tuple[Row, ...], velocities: list[Tensor]) -> list[Tensor]:
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
