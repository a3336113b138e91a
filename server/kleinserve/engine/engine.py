"""The engine: drawings in, pixels out, one step at a time. Knows no queue, no deadline, no caller.

Two threads may use it at once: one for `step`, `preview` and `latent`, which touch the transformer alone; one for the
rest, which touches the text encoder and the VAE, and may use them again in their `pauses`. A drawing is in one thread's
hands at a time.
"""

import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from kleinserve.config import Config
from kleinserve.core import (
    EDGE_MULTIPLE,
    ModelFacts,
    Operation,
    Pixels,
    Reference,
    Request,
    Size,
    Variant,
)
from kleinserve.engine import alpha, checkpoint, compiled, memory, preview, quantized, schedule, upsample
from kleinserve.engine.cores import Cores
from kleinserve.engine.denoise import Denoiser, Row, noise
from kleinserve.engine.drawing import Drawing
from kleinserve.engine.pauses import Pauses
from kleinserve.engine.references import ReferenceEncoder
from kleinserve.engine.text import TextEncoder, Tokenizer, Tokens
from kleinserve.engine.vae import Vae


class Engine:
    """A loaded checkpoint. Raises: UnusableCheckpoint where it cannot be loaded or does not fit."""

    def __init__(self, layout: checkpoint.Layout, config: Config):
        self.plan = memory.plan(layout, config.device, config.dtype, config.memory)
        device, self._is_offloaded = self.plan.device, self.plan.is_offloaded
        self._cores = Cores(config.torch_threads if device.type == "cpu" else 1)
        quantized.check(config.quantize, device, self.plan.dtype)
        self.is_compiled, self._is_quantized = compiled.is_compiled(config.compile, device), config.quantize == "fp8"
        modules = checkpoint.load(layout, self.plan.dtype)
        upsample.fold(modules.vae)
        modules.vae.to(memory_format=torch.channels_last)
        modules.transformer.to(device)
        if not self._is_offloaded:
            modules.text_encoder.to(device)
            modules.vae.to(device)
        if self._is_quantized:
            quantized.quantize(modules.transformer)
        self._mu_policy, self._scheduler, self._device = config.mu_policy, modules.scheduler, device
        self._aside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._decode_pixels_max = config.decode_pixels_max
        self._transparent_phrase = layout.transparent_phrase
        self._denoiser = Denoiser(modules.transformer)
        self._vae = Vae(modules.vae, device, config.decode_pixels_max)
        limit = layout.prompt_tokens_limit or min(checkpoint.PROMPT_TOKENS_MAX, modules.tokenizer.model_max_length)
        is_mistral = layout.text_encoder_class == "Mistral3ForConditionalGeneration"
        tokenizer = Tokenizer(modules.tokenizer, limit, is_mistral=is_mistral)
        self._text = TextEncoder(
            modules.text_encoder,
            modules.transformer.context_embedder,
            tokenizer,
            layout.text_layers,
            config.prompt_cache_bytes_max,
            device,
        )
        self._references = ReferenceEncoder(self._vae, modules.transformer.x_embedder, config.reference_cache_bytes_max)
        with self._cores.share(), memory.lent(modules.vae, device, self._is_offloaded):
            self._preview = preview.fit(self._vae)
        if self.is_compiled:
            compiled.compile_blocks(modules.transformer)
        if self.is_compiled and device.type == "cuda":
            compiled.compile_norms(modules.vae)
        # Offloaded, what is done in a pause would find no room, or send the VAE away.
        self.pauses = Pauses(modules.vae, partial(memory.finish, device), is_offered=not self._is_offloaded)
        self.facts = self._facts(layout, modules, limit)

    def _facts(self, layout: checkpoint.Layout, modules: checkpoint.Modules, prompt_tokens_max: int) -> ModelFacts:
        embedded = modules.transformer.config.guidance_embeds
        variant = Variant.DISTILLED if layout.is_distilled else Variant.GUIDANCE_EMBEDDED if embedded else Variant.BASE
        edge = modules.vae.config.sample_size
        width, height = edge if isinstance(edge, (list, tuple)) else (edge, edge)
        return ModelFacts(
            name=layout.name,
            variant=variant,
            default_size=Size(int(width), int(height)),
            default_steps=4 if layout.is_distilled else 50,
            default_guidance_scale=1.0 if layout.is_distilled else 4.0,
            prompt_tokens_max=prompt_tokens_max,
            latent_channels=self._vae.latent_channels,
            has_native_alpha=self._vae.channels == 4,
            device=str(self._device),
            dtype="fp8" if self._is_quantized else str(self.plan.dtype).removeprefix("torch."),
        )

    def warm(self) -> None:
        """Compile, where that is chosen, for all the threads and for half of them; afterwards nothing is compiled.

        Lengths that are equal, or equal a width of the model, are taken for one and the same: hence the odd sizes, and
        two sets of several noise levels.
        """
        if not self.is_compiled:
            return
        channels, size = 4 if self.facts.has_native_alpha else 3, Size(96, 64)
        reference = Reference(Pixels(Size(80, 64), channels, bytes(80 * 64 * channels)), b"")
        asked = Request("warm-up", Operation.EDIT, "", (reference,), size, 0, 3, self.facts.default_guidance_scale)
        with compiled.compiling():
            for beside in (nullcontext(), self._cores.crowded()):
                drawings = [self.drawing(asked) for _ in range(3)]
                with beside:
                    self.begin(drawings)
                    for count in (1, 2, 3):  # their noise levels differ from the second on
                        self.step(drawings[:count])
                    self.decode(drawings[:1])
                    self.decode(drawings[1:])

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Compute for the block beside the steps: with a part of the cores, on CUDA on a stream of its own.

        When it ends the device has done it all: what it leaves is the other thread's to use, and to free.
        """
        stream = nullcontext() if self._aside is None else torch.cuda.stream(self._aside)
        with self._cores.share(), stream:
            yield
            memory.finish(self._device)

    def drawing(self, request: Request) -> Drawing:
        """What `begin` starts: the prompt tokenised, with the phrase that asks for a cut-out. From any thread."""
        prompt, passes = request.prompt, 1
        if request.is_transparent and self.facts.has_native_alpha:
            if "transparent" not in prompt.lower():
                prompt = f"{prompt.rstrip(' .,')} {self._transparent_phrase}"
        elif request.is_transparent:
            prompt, passes = prompt.rstrip(" .,") + alpha.ON_WHITE, 2
        return Drawing(request, self._text.tokenizer.tokenize(prompt), passes)

    def begin(self, drawings: Sequence[Drawing]) -> None:
        """Give every drawing its first row: prompts encoded together, references one by one, both from their caches."""
        with self._beside():
            contexts = self._contexts([(drawing, drawing.prompt) for drawing in drawings])
            for drawing in drawings:
                drawing.row = self._row(drawing, drawing.prompt, drawing.request.references, contexts)

    def _contexts(self, prompts: list[tuple[Drawing, Tokens]]) -> dict[tuple[int, ...], torch.Tensor]:
        """The projected context of every prompt, by its token ids; what the cache lacks is encoded in one pass."""
        started = self.pauses.seconds()
        wanted = [prompt for _, prompt in prompts]
        if any(self._needs_empty(drawing.request) for drawing, _ in prompts):
            wanted.append(self._empty())
        contexts = {p.ids: context for p in wanted if (context := self._text.cached(p)) is not None}
        missing = list({p.ids: p for p in wanted if p.ids not in contexts}.values())
        for drawing, prompt in prompts:
            drawing.prompt_hit = prompt.ids in contexts
        if missing:
            with memory.lent(self._text.module, self._device, self._is_offloaded):
                encoded = self._text.encode(missing)
            contexts |= dict(zip((p.ids for p in missing), encoded, strict=True))
            memory.finish(self._device)
        for drawing, _ in prompts:
            drawing.text_seconds += self.pauses.seconds() - started
        return contexts

    def _row(
        self,
        drawing: Drawing,
        prompt: Tokens,
        references: Sequence[Reference],
        contexts: dict[tuple[int, ...], torch.Tensor],
    ) -> Row:
        request = drawing.request
        started = self.pauses.seconds()
        is_lent = self._is_offloaded and not all(map(self._references.is_cached, references))
        drawing.reference_hits, tokens = [], []
        with memory.lent(self._vae.module, self._device, is_lent):
            for reference in references:
                drawing.reference_hits.append(self._references.is_cached(reference))
                tokens.append(self._references.encode(reference))
        if tokens:
            memory.finish(self._device)
        drawing.references_seconds += self.pauses.seconds() - started
        sequences = [prompt, self._empty()] if self._needs_empty(request) else [prompt]
        width = self._denoiser.transformer.inner_dim
        nothing = torch.empty(0, width, dtype=self._denoiser.dtype, device=self._device)
        return Row(
            size=request.size,
            latents=noise(request.size, self._vae.latent_channels, request.seed).to(self._device),
            references=torch.cat(tokens) if tokens else nothing,
            reference_sizes=tuple(r.pixels.size for r in references),
            contexts=tuple(contexts[p.ids] for p in sequences),
            sigmas=schedule.sigmas(self._scheduler, request.size.tokens, request.steps, self._mu_policy),
            guidance_scale=request.guidance_scale,
        )

    def _empty(self) -> Tokens:
        return self._text.tokenizer.tokenize("")

    def _needs_empty(self, request: Request) -> bool:
        # As the stock pipeline: classifier-free guidance only above 1.
        return self.facts.variant is Variant.BASE and request.guidance_scale > 1

    def tokens(self, drawing: Drawing) -> int:
        """Tokens the drawing adds to a step; before it is begun, those of its first pass."""
        if drawing.row is not None:
            return drawing.row.tokens
        request = drawing.request
        own = self.facts.prompt_tokens_max + request.size.tokens
        own += sum(reference.pixels.size.tokens for reference in request.references)
        return own * (2 if self._needs_empty(request) else 1)

    def work(self, drawing: Drawing) -> float:
        """GFLOP of one step of the drawing; before it is begun, of its first pass."""
        sequences = 2 if self._needs_empty(drawing.request) else 1
        return sequences * self._denoiser.work(self.tokens(drawing) // sequences)

    @property
    def work_per_token(self) -> float:
        """GFLOP that a token adds to a step, its attention left out."""
        return self._denoiser.work(1)

    def step(self, drawings: Sequence[Drawing]) -> None:
        """Advance every drawing by one step in one pass. Raises: torch.OutOfMemoryError; then none has moved."""
        rows = [drawing.row for drawing in drawings if drawing.row is not None]
        with self._cores.share():
            self._denoiser.step(rows)
        for drawing in drawings:
            drawing.steps_done += 1

    def preview(self, drawing: Drawing) -> Pixels:
        """The last step's estimate as a picture, an eighth of the size; RGBA for a native cut-out, else RGB."""
        assert drawing.row is not None
        assert drawing.row.estimate is not None
        picture = _unit(self._preview.draw(drawing.row.estimate, drawing.request.size)[None])[0]
        if picture.shape[-1] == 4 and not drawing.request.is_transparent:
            picture = alpha.composite_on_white(picture)
        return alpha.quantise(picture)

    def latent(self, drawing: Drawing) -> tuple[bytes, tuple[int, int, int]]:
        """The last step's estimate, float16 little endian, channels × H/16 × W/16, and (width, height, channels)."""
        assert drawing.row is not None
        assert drawing.row.estimate is not None
        size, tokens = drawing.request.size, drawing.row.estimate
        shape = (size.width // EDGE_MULTIPLE, size.height // EDGE_MULTIPLE, tokens.shape[1])
        return tokens.T.contiguous().cpu().numpy().astype("<f2").tobytes(), shape

    def decode(self, drawings: Sequence[Drawing], *, tiled: bool = False) -> list[alpha.Picture]:
        """The denoised latents as pictures [H, W, channels] in 0..1, those of one size in one call."""
        by_size: dict[Size, list[int]] = defaultdict(list)
        for i, drawing in enumerate(drawings):
            by_size[drawing.request.size].append(i)
        pictures: dict[int, alpha.Picture] = {}
        with self._beside(), memory.lent(self._vae.module, self._device, self._is_offloaded):
            for size, indices in by_size.items():
                at_once = max(1, self._decode_pixels_max // size.pixels)
                for start in range(0, len(indices), at_once):
                    group = indices[start : start + at_once]
                    rows = [row for i in group if (row := drawings[i].row) is not None]
                    decoded = self._vae.decode([row.latents for row in rows], size, tiled=tiled)
                    pictures |= dict(zip(group, _unit(decoded), strict=True))
        return [pictures[i] for i in range(len(drawings))]

    def begin_second(self, drawing: Drawing, on_white: alpha.Picture) -> None:
        """Begin the second pass of a `difference` cut-out: the picture on white, edited to black with the same seed."""
        prompt = self._text.tokenizer.tokenize(alpha.TO_BLACK)
        reference = Reference(alpha.quantise(on_white), b"")  # it comes once: not to be kept
        with self._beside():
            row = self._row(drawing, prompt, [reference], self._contexts([(drawing, prompt)]))
        drawing.row, drawing.on_white = row, on_white  # at last: a failure leaves no trace

    @property
    def identity(self) -> str:
        """What the speed depends on: the checkpoint's shape, where it runs and how."""
        if self._device.type == "cuda":
            device = torch.cuda.get_device_name(self._device)
        else:
            device = f"{platform.machine()}, {self._cores.threads} of {os.cpu_count()} cores"
        kept = "offload" if self._is_offloaded else "resident"
        how = f"{self.facts.dtype}, {kept}, {'compiled' if self.is_compiled else 'eager'}"
        return f"{self.facts.name}, {self.work_per_token} GFLOP, {device}, {how}"

    def memory_bytes(self) -> dict[str, int]:
        """Accelerator memory: used, peak and total bytes; on the CPU, the process's share of the machine's."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            return {"used": total - free, "peak": torch.cuda.max_memory_reserved(self._device), "total": total}
        return memory.process_bytes()


def _unit(pictures: torch.Tensor) -> alpha.Picture:
    """[B, channels, H, W] in −1..1 -> [B, H, W, channels] in 0..1."""
    unit: alpha.Picture = (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return unit
