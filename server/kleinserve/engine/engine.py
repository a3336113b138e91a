"""The engine: renders in, pixels out, one step or piece at a time. Knows no queue, no deadline, no caller.

Two threads may use it at once: one for `step` and `previews`, which touch the transformer alone; one for the rest,
which touches the text encoder and the VAE. A render is in one thread's hands at a time. Everywhere it may raise
AcceleratorOutOfMemory, after which nothing of that call has happened, and AcceleratorLost.
"""

import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial

import structlog
import torch

from kleinserve import process
from kleinserve.config import Config
from kleinserve.core import (
    MEGAPIXEL,
    AlphaMethod,
    Demand,
    ModelFacts,
    Operation,
    Options,
    Pixels,
    Preview,
    PreviewFormat,
    Reference,
    Request,
    Size,
    Variant,
)
from kleinserve.engine import alpha, checkpoint, compiled, memory, pixels, preview, quantized, schedule, upsample
from kleinserve.engine.conditioning import Conditioning
from kleinserve.engine.cores import Cores
from kleinserve.engine.denoise import Denoiser
from kleinserve.engine.references import ReferenceEncoder
from kleinserve.engine.render import Render
from kleinserve.engine.text import TextEncoder, Tokenizer
from kleinserve.engine.vae import Pieces, Vae
from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory, AlphaUnavailable, UnusableCheckpoint

_SIGMAS_KEPT = 1024  # schedules, of a size and a number of steps each
_PIECE_SECONDS = 0.01  # a piece that is shorter is not worth a turn: the next one is done with it

log = structlog.get_logger()


class Engine:
    """A loaded checkpoint. Raises: UnusableCheckpoint where it cannot be loaded or does not fit."""

    def __init__(self, layout: checkpoint.Layout, config: Config):
        self.plan = memory.plan(layout, config.device, config.dtype, config.memory)
        device, self._is_offloaded = self.plan.device, self.plan.is_offloaded
        self._cores = Cores(config.torch_threads if device.type == "cpu" else 1)
        quantized.check(config.quantize, device, self.plan.dtype)
        self._is_quantized = config.quantize == "fp8"
        modules = checkpoint.load(layout, self.plan.dtype)
        upsample.fold(modules.vae)
        modules.vae.to(memory_format=torch.channels_last)
        modules.transformer.to(device)
        if self._is_quantized:
            quantized.quantize(modules.transformer)
        self._device = device
        self._aside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._warming = threading.Lock()
        self._transparent_phrase = layout.transparent_phrase
        is_compiled = compiled.is_wanted(config.compile, device)
        self._denoiser = Denoiser(modules.transformer, is_compiled=is_compiled)
        self._vae = Vae(modules.vae, device, config.decode_pixels_max)
        self._lend_vae = memory.lender(modules.vae, device, self._is_offloaded)
        limit = layout.prompt_tokens_limit or min(checkpoint.PROMPT_TOKENS_MAX, modules.tokenizer.model_max_length)
        is_mistral = layout.text_encoder_class == "Mistral3ForConditionalGeneration"
        text = TextEncoder(
            modules.text_encoder,
            modules.transformer.context_embedder,
            Tokenizer(modules.tokenizer, limit, is_mistral=is_mistral),
            layout.text_layers,
            config.prompt_cache_bytes_max,
            device,
            memory.lender(modules.text_encoder, device, self._is_offloaded),
        )
        references = ReferenceEncoder(
            self._vae, modules.transformer.x_embedder, config.reference_cache_bytes_max, self._lend_vae
        )
        self.facts = self._facts(layout, modules, limit)
        is_guided = self.facts.variant is Variant.BASE
        sigmas = lru_cache(_SIGMAS_KEPT)(partial(schedule.sigmas, modules.scheduler, policy=config.mu_policy))
        self._conditioning = Conditioning(
            text, references, self._vae.latent_channels, sigmas, self._denoiser.begin, is_guided=is_guided
        )
        with self._cores.share(), self._lend_vae():
            self._preview = preview.fit(self._vae)
        self.compile_state = "eager"  # or "compiled", or "failed: " and why; what was asked for is known after warm()
        self._must_compile = config.compile == "on"
        self._warm_sizes = config.warm_sizes or ((self.facts.default_size,) if device.type == "cuda" else ())
        if is_compiled:
            with self._falling_back():
                compiled.check()
                compiled.compile_blocks(modules.transformer)
                if device.type == "cuda":
                    compiled.compile_norms(modules.vae)
                self.compile_state = "compiled"

    @contextmanager
    def _falling_back(self) -> Iterator[None]:
        """Go on eagerly where what is compiled in the block cannot be. Raises: UnusableCheckpoint where it must be."""
        try:
            yield
        except AcceleratorLost:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            if self._must_compile:
                raise UnusableCheckpoint(f"compile on: {reason}") from error
            compiled.undo(self._denoiser.transformer, self._vae.module)
            self.compile_state = f"failed: {reason}"
            log.warning("not compiled, serving eagerly", error=reason)

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

        Then make an image of each of `warm_sizes`: on CUDA library handles and plans are the calling thread's own.
        Lengths that are equal, or equal a width of the model, are taken for one and the same: hence the odd sizes, and
        two sets of several noise levels.
        """
        with self._warming:
            if self.compile_state == "compiled":
                with self._falling_back(), compiled.compiling():
                    for beside in (nullcontext(), self._cores.crowded()):
                        with beside:
                            self._draw(Size(96, 64), Size(80, 64), together=3)
            for size in self._warm_sizes:
                try:
                    self._draw(size, size, together=1)
                except AcceleratorOutOfMemory:
                    log.warning("not warmed, not enough accelerator memory", size=str(size))

    def _draw(self, size: Size, reference_size: Size, together: int) -> None:
        """Make edits of `size` as requests do, more of them at each step."""
        channels = 4 if self.facts.has_native_alpha else 3
        reference = Reference(Pixels(reference_size, channels, bytes(reference_size.pixels * channels)), b"")
        options = Options(0, 3, self.facts.default_guidance_scale)
        asked = Request("warm-up", Operation.EDIT, "", (reference,), size, options)
        renders = [self.render(asked) for _ in range(together)]
        for render in renders:
            _finish(self.begin(render))
        for count in range(1, together + 1):  # their noise levels differ from the second on
            self.step(renders[:count])
        for shown in self.previews(renders[:1]):
            shown()
        _finish(self.decode(renders[:1]))
        if renders[1:]:
            _finish(self.decode(renders[1:]))

    def render(self, request: Request) -> Render:
        """A picture not yet begun: the prompt tokenised, with the phrase that asks for a cut-out. From any thread."""
        tokenize, prompt = self._conditioning.text.tokenizer.tokenize, request.prompt
        if not request.is_transparent:
            return Render(request, tokenize(prompt), passes=1)
        if not self.facts.has_native_alpha:
            return Render(request, tokenize(prompt, alpha.ON_WHITE), passes=2)
        tokens = tokenize(prompt)
        if tokens.is_truncated or "transparent" not in prompt.lower():
            tokens = tokenize(prompt, f" {self._transparent_phrase}")
        return Render(request, tokens, passes=1)

    def demand(self, render: Render) -> Demand:
        """What it asks of the stages from now on; before it is begun, of its first pass."""
        request, row = render.request, render.row
        sequences = 2 if self._conditioning.needs_empty(request) else 1
        own = self.facts.prompt_tokens_max + request.size.tokens
        own += sum(reference.pixels.size.tokens for reference in request.references)
        tokens = sequences * own if row is None else row.tokens
        return Demand(
            work=sequences * self._denoiser.work(tokens // sequences),
            tokens=tokens,
            output_megapixels=request.size.pixels / MEGAPIXEL,
            reference_megapixels=sum(size.pixels for size in request.reference_sizes) / MEGAPIXEL,
            passes=render.passes if render.on_white is None else 1,
        )

    @property
    def work_per_token(self) -> float:
        """GFLOP that a token adds to a step, its attention left out."""
        return self._denoiser.work(1)

    def _pieces(self, work: Pieces[None], cores: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Do `work` beside the steps, a piece each time it is advanced. Closed before its end it leaves no trace."""
        try:
            while self._advance(work, cores):
                yield
        finally:
            work.close()

    def _advance(self, work: Pieces[None], cores: Callable[[], AbstractContextManager[None]]) -> bool:
        """Do a piece, or several short ones: with a part of the cores, on CUDA on its own stream. Is there more?

        When it returns the device has done it: what it leaves is the other thread's to use, and to free. Offloaded,
        all is one piece: what is done between two would find no room.
        """
        stream = nullcontext() if self._aside is None else torch.cuda.stream(self._aside)
        until = time.monotonic() + _PIECE_SECONDS
        with memory.reported(), cores(), stream, torch.inference_mode():
            for _ in work:
                if not self._is_offloaded:
                    memory.finish(self._device)
                    if time.monotonic() >= until:
                        return True
            memory.finish(self._device)
        return False

    def text(self, renders: Sequence[Render]) -> Iterator[None]:
        """Encode their prompts, or find them in the cache: a piece each time it is advanced."""
        return self._pieces(self._conditioning.encode_text(renders), self._cores.same)

    def begin(self, render: Render) -> Iterator[None]:
        """Encode its references, a piece at a time, and its prompt before; at the end its first step can be taken."""
        return self._pieces(self._conditioning.begin(render), self._cores.same)

    def begin_second(self, render: Render) -> Iterator[None]:
        """Begin the second pass of a `difference` cut-out: the picture on white, edited to black with the same seed."""
        return self._pieces(self._conditioning.begin_second(render), self._cores.same)

    def step(self, renders: Sequence[Render]) -> None:
        """Advance every render by one step in one pass."""
        rows = [render.row for render in renders if render.row is not None]
        with memory.reported(), self._cores.share():
            self._denoiser.step(rows)
        for render in renders:
            render.steps_done += 1

    def previews(self, renders: Sequence[Render]) -> list[Callable[[], Pixels | Preview]]:
        """The last step's estimates: pictures an eighth of the size, RGBA for a native cut-out, else RGB; or latents.

        A latent: float16 little endian, channels × H/16 × W/16. Each is ready when its call returns; from any thread.
        On a CPU it is that call which draws, so that the steps go on meanwhile, and draws all that are alike.
        """
        alike: dict[tuple[Size, bool, bool], list[int]] = defaultdict(list)
        for i, render in enumerate(renders):
            is_latent = render.request.options.preview.format is PreviewFormat.LATENT
            alike[render.request.size, is_latent, render.request.is_transparent].append(i)
        drawn: dict[int, Callable[[], Pixels | Preview]] = {}
        for (size, is_latent, is_cut_out), places in alike.items():
            rows = [row for i in places if (row := renders[i].row) is not None]
            estimates = [row.estimate for row in rows if row.estimate is not None]
            fetch = self._cores.once(partial(self._sent, estimates, size, is_latent=is_latent, is_cut_out=is_cut_out))
            if self._device.type == "cuda":
                fetch()
            for place, i in enumerate(places):
                steps = renders[i].steps_done, renders[i].total_steps
                latent = partial(preview.latent, fetch, place, *steps, size)
                drawn[i] = latent if is_latent else partial(preview.picture, fetch, place)
        return [drawn[i] for i in range(len(renders))]

    def _sent(self, estimates: list[torch.Tensor], size: Size, *, is_latent: bool, is_cut_out: bool) -> pixels.Fetch:
        """Previews of one size, drawn, and on their way to the host."""
        with memory.reported(), torch.inference_mode():
            stacked = torch.stack(estimates)
            if is_latent:
                return pixels.Fetch(stacked.transpose(1, 2).half().contiguous())
            drawn = self._preview.draw(stacked, size, is_cut_out=is_cut_out)
            return pixels.Fetch(pixels.quantise(drawn, is_cut_out=is_cut_out))

    def decode(self, renders: Sequence[Render], *, tiled: bool = False) -> Iterator[None]:
        """Decode pictures of one size, a piece at a time; at the end each `picture` is set and its row is gone."""
        return self._pieces(self._decode(renders, tiled), self._cores.share)

    def _decode(self, renders: Sequence[Render], is_tiled: bool) -> Pieces[None]:
        rows = [row for render in renders if (row := render.row) is not None]
        with self._lend_vae():
            decoded = yield from self._vae.decode([row.latents for row in rows], rows[0].size, is_tiled=is_tiled)
            fetches = [pixels.Fetch(self._shown(r, one)) for r, one in zip(renders, decoded.split(1), strict=True)]
            del decoded
            memory.finish(self._device)
        for render, fetch in zip(renders, fetches, strict=True):
            render.picture, render.row = fetch.array()[0], None

    def _shown(self, render: Render, picture: torch.Tensor) -> torch.Tensor:
        """What leaves the device of a decoded picture: 8 bits, but where alpha is still to be found between two."""
        if render.passes == 2:
            return pixels.unit(picture).contiguous()
        return pixels.quantise(picture, is_cut_out=render.request.is_transparent)

    def resolve(self, render: Render) -> tuple[Pixels, AlphaMethod]:
        """The final pixels of a decoded picture. From any thread.

        Raises: AlphaUnavailable where a cut-out was asked and no background was found.
        """
        assert render.picture is not None
        with memory.reported():
            if not render.request.is_transparent:
                return alpha.pixels(render.picture), AlphaMethod.OPAQUE
            levels, method = alpha.cut_out(render.picture, render.on_white)
        if levels is None:
            raise AlphaUnavailable("no background was found to make transparent; ask for a plain background")
        return alpha.pixels(levels), method

    def release(self) -> None:
        """Give unused memory back, so that a smaller attempt finds room."""
        memory.release()

    @property
    def identity(self) -> str:
        """What the speed depends on: the checkpoint's shape, where it runs and how."""
        if self._device.type == "cuda":
            device = torch.cuda.get_device_name(self._device)
        else:
            device = f"{platform.machine()}, {self._cores.threads} of {process.cores()} cores"
        kept = "offload" if self._is_offloaded else "resident"
        how = f"{self.facts.dtype}, {kept}, {'compiled' if self.compile_state == 'compiled' else 'eager'}"
        return f"{self.facts.name}, {self.work_per_token} GFLOP, {device}, {how}"

    def memory_bytes(self) -> dict[str, int]:
        """Accelerator memory: used, peak and total bytes; on the CPU, the process's share of the machine's."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            return {"used": total - free, "peak": torch.cuda.max_memory_reserved(self._device), "total": total}
        return memory.process_bytes()


def _finish(pieces: Iterator[None]) -> None:
    for _ in pieces:
        pass
