"""A picture in the making: one request, its rows on the device, what is decoded of it."""

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from kleinserve.core import Request
from kleinserve.engine.denoise import Row
from kleinserve.engine.text import Tokens


@dataclass(eq=False)
class Render:
    """One request's picture in the making. `difference` alpha takes two passes: on white, then edited to black.

    contexts: its prompt's embeddings, once encoded. row: from the beginning of a pass until its picture is decoded.
    picture: [H, W, channels], 8 bits, RGBA for a native cut-out, else RGB; float32 in 0..1 where two passes will be
    compared. on_white: the first pass's picture, once the second has begun.
    """

    request: Request
    prompt: Tokens
    passes: int
    contexts: tuple[Tensor, ...] | None = None
    row: Row | None = None
    picture: NDArray[Any] | None = None
    on_white: NDArray[Any] | None = None
    steps_done: int = 0
    prompt_hit: bool | None = None
    reference_hits: list[bool] = field(default_factory=list)

    @property
    def total_steps(self) -> int:
        return self.request.options.steps * self.passes

    @property
    def prompt_tokens(self) -> int:
        """Before the cut at the model's limit."""
        return self.prompt.count

    @property
    def is_truncated(self) -> bool:
        return self.prompt.is_truncated

    @property
    def is_begun(self) -> bool:
        """Whether its prompt and references are encoded."""
        return self.row is not None or self.picture is not None

    @property
    def is_denoised(self) -> bool:
        """Whether the present pass has no steps left."""
        row = self.row  # another thread may take it away
        return row.is_done if row is not None else self.picture is not None

    @property
    def needs_second(self) -> bool:
        """Whether another pass follows the present one."""
        return self.passes == 2 and self.on_white is None
