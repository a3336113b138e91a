"""A request whose fields are valid, before its references are decoded."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from kleinserve.core.limits import PREVIEW_BYTES_MAX
from kleinserve.core.model import ModelFacts
from kleinserve.core.request import Operation, Options, PreviewFormat, Reference, Request
from kleinserve.core.size import Size
from kleinserve.errors import InvalidField, Violation


@dataclass(frozen=True)
class Draft:
    """`references` are files. `size` None: the model's default, or what the first reference decides.

    `is_seed_drawn`: the caller gave no seed, and the server drew one.
    """

    operation: Operation
    prompt: str
    references: tuple[bytes, ...]
    size: Size | None
    options: Options
    is_seed_drawn: bool

    def request(self, request_id: str, caller: str, facts: ModelFacts, references: tuple[Reference, ...]) -> Request:
        """The request with its references decoded and its size known. Raises: InvalidField."""
        size = self.size or (references[0].pixels.size if references else facts.default_size)
        preview = self.options.preview
        has_latents = preview.format is PreviewFormat.LATENT and not preview.disabled
        if has_latents and (violations := tuple(too_large_latents(size, facts))):
            raise InvalidField(*violations)
        return Request(request_id, self.operation, self.prompt, references, size, self.options, caller)

    def digest(self, salt: bytes, facts: ModelFacts) -> bytes:
        """What makes it the same request as another under one key: 32 bytes.

        Prompt, references' bytes and options as values, without preview, priority, on_disconnect and client_tag. A seed
        that the server drew counts as none.
        """
        size = self.size or (None if self.references else facts.default_size)
        output = self.options.output
        values = [
            self.operation.value,
            self.prompt,
            [hashlib.sha256(reference).hexdigest() for reference in self.references],
            str(size),
            None if self.is_seed_drawn else self.options.seed,
            self.options.steps,
            self.options.guidance_scale,
            [output.format.name, output.quality, output.embed_prompt, output.background.value],
        ]
        return hashlib.sha256(salt + json.dumps(values).encode()).digest()


def too_large_latents(size: Size, facts: ModelFacts) -> Iterator[Violation]:
    """What is wrong with LATENT previews of an image of this size: they exceed a preview's bytes."""
    held = size.tokens * facts.latent_channels * 2  # float16
    if held > PREVIEW_BYTES_MAX:
        text = f"LATENT previews of {size} are {held} bytes; at most {PREVIEW_BYTES_MAX}"
        for field in ("width", "height", "preview.format"):
            yield Violation(f"options.{field}", text)
