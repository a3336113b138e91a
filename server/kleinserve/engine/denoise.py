"""One denoising step over any set of rows: different sizes, step counts, references and noise levels in one pass.

The engine's heart. Knows rows, not requests: no deadlines, no callers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from kleinserve.core import EDGE_MULTIPLE, Size
from kleinserve.engine import memory
from kleinserve.engine.attention import PackedDoubleProcessor, PackedSingleProcessor, Packing

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


def image_positions(time: int, size: Size) -> Tensor:
    """Position ids [T, 4] of an image's tokens: (time, h, w, 0)."""
    axes = torch.tensor([time]), torch.arange(size.height // EDGE_MULTIPLE), torch.arange(size.width // EDGE_MULTIPLE)
    return torch.cartesian_prod(*axes, torch.arange(1))


def text_positions(tokens: int) -> Tensor:
    """Position ids [tokens, 4] of a prompt: (0, 0, 0, l)."""
    positions = torch.zeros(tokens, 4, dtype=torch.long)
    positions[:, 3] = torch.arange(tokens)
    return positions


@dataclass(frozen=True, eq=False)
class Pass:
    """What one set of rows needs at every step while the set stays the same."""

    rows: tuple[Row, ...]
    packing: Packing
    rotary: tuple[Tensor, Tensor]  # cosines and sines, float32 [all tokens, head channels], sequence order
    context: Tensor  # [1, all text tokens, D], stream order
    outputs: Tensor  # sequence positions of the tokens being denoised
    text_of: (
        Tensor  # which sequence each text token is of; likewise of image tokens, of all in sequence order, of outputs
    )
    image_of: Tensor
    token_of: Tensor
    output_of: Tensor


class Denoiser:
    """The stock transformer with packed attention."""

    def __init__(self, transformer: Flux2Transformer2DModel):
        self.transformer = transformer
        self.device, self.dtype = transformer.device, transformer.dtype
        for block in transformer.transformer_blocks:
            block.attn.set_processor(PackedDoubleProcessor())
        for block in transformer.single_transformer_blocks:
            block.attn.set_processor(PackedSingleProcessor())
        double = sum(p.numel() for p in transformer.transformer_blocks.parameters()) / 2  # a token is in one stream
        self._weights = double + sum(p.numel() for p in transformer.single_transformer_blocks.parameters())
        self._layers = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        self._pass: Pass | None = None

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

    def _prepare(self, rows: tuple[Row, ...]) -> Pass:
        if self._pass is not None and self._pass.rows == rows:
            return self._pass
        sequences = [(row, context) for row in rows for context in row.contexts]
        texts = [len(context) for _, context in sequences]
        images = [len(row.latents) + len(row.references) for row, _ in sequences]
        packing = Packing.of(texts, images, self.device)
        positions, outputs, start = [], [], 0
        for row, context in sequences:
            positions += [text_positions(len(context)), image_positions(0, row.size)]
            for i, size in enumerate(row.reference_sizes):
                positions.append(image_positions(REFERENCE_TIME_STRIDE * (i + 1), size))
            outputs.append(torch.arange(start + len(context), start + len(context) + len(row.latents)))
            start += len(context) + len(row.latents) + len(row.references)
        rotary = self.transformer.pos_embed(torch.cat(positions).to(self.device))
        context_stream = torch.cat([context for _, context in sequences])[None]
        of = [torch.arange(len(sequences)).repeat_interleave(torch.tensor(n)) for n in (texts, images, packing.lengths)]
        output = torch.cat(outputs)
        per_token = (t.to(self.device) for t in (output, *of, of[-1][output]))
        self._pass = Pass(rows, packing, rotary, context_stream, *per_token)
        return self._pass

    def _velocities(self, prepared: Pass) -> list[Tensor]:
        """The predicted velocity of each row, float32 [T, C], guidance applied."""
        model, rows, packing = self.transformer, prepared.rows, prepared.packing
        sequences = [row for row in rows for _ in row.contexts]
        embedding = self._time_embedding(sequences)  # [sequences or 1, D]
        embedded = [model.x_embedder(row.latents.to(self.dtype)) for row in rows]
        image = torch.cat(
            [part for row, e in zip(rows, embedded, strict=True) for _ in row.contexts for part in (e, row.references)]
        )[None]
        text = prepared.context
        image_modulation = _per_token(model.double_stream_modulation_img(embedding), prepared.image_of)
        text_modulation = _per_token(model.double_stream_modulation_txt(embedding), prepared.text_of)
        extras = {"packing": packing}
        for block in model.transformer_blocks:
            text, image = block(image, text, image_modulation, text_modulation, prepared.rotary, extras)

        hidden = torch.cat([text, image], dim=1)[:, packing.order]
        modulation = _per_token(model.single_stream_modulation(embedding), prepared.token_of)
        for block in model.single_transformer_blocks:
            hidden = block(hidden, None, modulation, prepared.rotary, extras)

        # AdaLayerNormContinuous, with its scale and shift per token: scale comes first here, unlike in the blocks.
        norm = model.norm_out
        scale, shift = _per_token(norm.linear(norm.silu(embedding)), prepared.output_of).chunk(2, dim=-1)
        hidden = norm.norm(hidden[:, prepared.outputs]) * (1 + scale) + shift
        velocity = list(model.proj_out(hidden)[0].float().split([len(row.latents) for row in sequences]))
        return _guided(rows, velocity)

    def _time_embedding(self, sequences: list[Row]) -> Tensor:
        """[sequences, D], or [1, D] where all share one noise level and guidance (their modulation broadcasts)."""
        levels = [(row.sigmas[row.step], row.guidance_scale) for row in sequences]
        if len(set(levels)) == 1:
            levels = levels[:1]
        sigma = torch.tensor([level for level, _ in levels], dtype=torch.float32)
        # The stock pipeline rounds 1000 sigma to the model's dtype, divides, and the model multiplies again.
        time = (sigma * 1000).to(self.device, self.dtype) / 1000 * 1000
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.tensor([scale for _, scale in levels]).to(self.device, self.dtype) * 1000
        embedding: Tensor = self.transformer.time_guidance_embed(time, guidance)
        return embedding


def _per_token(values: Tensor, of: Tensor) -> Tensor:
    """[sequences, k] -> [1, tokens, k] by each token's sequence; one shared row stays [1, 1, k] and broadcasts."""
    return values[:, None] if len(values) == 1 else values[of][None]


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
