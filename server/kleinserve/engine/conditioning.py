"""What a pass starts from: its prompt and references encoded, its noise, its noise levels. All in pieces.

Nothing of a render is changed before the last piece is done.
"""

from collections.abc import Callable, Sequence

import torch

from kleinserve.core import Reference, Request
from kleinserve.engine import alpha
from kleinserve.engine.denoise import Row, noise
from kleinserve.engine.references import ReferenceEncoder
from kleinserve.engine.render import Render
from kleinserve.engine.text import TextEncoder, Tokens
from kleinserve.engine.vae import Pieces


class Conditioning:
    """Gives renders their contexts and rows. `sigmas`: the noise levels by output tokens and steps.

    `begin_row`: makes what a row's steps need.
    """

    def __init__(
        self,
        text: TextEncoder,
        references: ReferenceEncoder,
        latent_channels: int,
        sigmas: Callable[[int, int], tuple[float, ...]],
        begin_row: Callable[[Row], Pieces[None]],
        *,
        is_guided: bool,
    ):
        self.text, self._references, self._begin_row = text, references, begin_row
        self._latent_channels, self._sigmas, self._is_guided = latent_channels, sigmas, is_guided

    def encode_text(self, renders: Sequence[Render]) -> Pieces[None]:
        hits = [self.text.is_cached(render.prompt) for render in renders]
        prompts = [self._prompts(render.request, render.prompt) for render in renders]
        contexts = yield from self.text.encode([prompt for own in prompts for prompt in own])
        for render, own, hit in zip(renders, prompts, hits, strict=True):
            render.contexts, render.prompt_hit = tuple(contexts[prompt.ids] for prompt in own), hit

    def begin(self, render: Render) -> Pieces[None]:
        if render.contexts is None:
            yield from self.encode_text([render])
        assert render.contexts is not None
        references = render.request.references
        hits = [self._references.is_cached(reference) for reference in references]
        render.row = yield from self._row(render.request, references, render.contexts)
        render.reference_hits = hits

    def begin_second(self, render: Render) -> Pieces[None]:
        on_white = render.picture
        assert on_white is not None
        prompts = self._prompts(render.request, self.text.tokenizer.tokenize(alpha.TO_BLACK))
        contexts = yield from self.text.encode(prompts)
        reference = Reference(alpha.pixels(alpha.quantise(on_white)), b"")  # it comes once: not to be kept
        row = yield from self._row(render.request, [reference], tuple(contexts[prompt.ids] for prompt in prompts))
        render.row, render.on_white, render.picture = row, on_white, None

    def _row(
        self, request: Request, references: Sequence[Reference], contexts: tuple[torch.Tensor, ...]
    ) -> Pieces[Row]:
        tokens = yield from self._references.encode(references)
        options, size, like = request.options, request.size, contexts[0]
        row = Row(
            size=size,
            latents=noise(size, self._latent_channels, options.seed).to(like.device),
            references=torch.cat(tokens) if tokens else like[:0],
            reference_sizes=tuple(r.pixels.size for r in references),
            contexts=contexts,
            sigmas=self._sigmas(size.tokens, options.steps),
            guidance_scale=options.guidance_scale,
        )
        yield from self._begin_row(row)
        return row

    def _prompts(self, request: Request, prompt: Tokens) -> list[Tokens]:
        """What its sequences are conditioned on: `prompt`, and for real guidance the empty one."""
        return [prompt, self.text.tokenizer.tokenize("")] if self.needs_empty(request) else [prompt]

    def needs_empty(self, request: Request) -> bool:
        # As the stock pipeline: classifier-free guidance only above 1.
        return self._is_guided and request.options.guidance_scale > 1
