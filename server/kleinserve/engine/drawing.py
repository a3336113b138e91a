"""A picture in the making, and its final pixels once it is decoded. Touches no device."""

from dataclasses import dataclass, field

from kleinserve.core import AlphaMethod, Pixels, Request
from kleinserve.engine import alpha
from kleinserve.engine.denoise import Row
from kleinserve.engine.text import Tokens
from kleinserve.errors import AlphaUnavailable


@dataclass(frozen=True)
class Result:
    """A finished picture and how its alpha came to be."""

    pixels: Pixels
    alpha_method: AlphaMethod


@dataclass(eq=False)
class Drawing:
    """One request's picture in the making. `difference` alpha takes two passes: on white, then edited to black."""

    request: Request
    prompt: Tokens
    passes: int
    row: Row | None = None  # from the beginning to the decoded picture
    on_white: alpha.Picture | None = None
    steps_done: int = 0
    text_seconds: float = 0.0
    references_seconds: float = 0.0
    prompt_hit: bool | None = None
    reference_hits: list[bool] = field(default_factory=list)

    @property
    def total_steps(self) -> int:
        return self.request.steps * self.passes

    @property
    def needs_second(self) -> bool:
        """Whether another pass follows the present one."""
        return self.passes == 2 and self.on_white is None

    @property
    def is_denoised(self) -> bool:
        """Whether the present pass has no steps left."""
        row = self.row  # another thread may take it away
        return row is not None and row.is_done


def resolve(drawing: Drawing, picture: alpha.Picture) -> Result:
    """The final pixels of a decoded picture; for any thread.

    Raises: AlphaUnavailable where a cut-out was asked and no background was found.
    """
    is_native = picture.shape[-1] == 4
    if not drawing.request.is_transparent:
        opaque = alpha.composite_on_white(picture) if is_native else picture
        return Result(alpha.quantise(opaque), AlphaMethod.OPAQUE)
    if is_native:
        return _cut_out(picture if alpha.has_background(picture[..., 3]) else None, AlphaMethod.NATIVE)
    assert drawing.on_white is not None
    cut = alpha.difference(drawing.on_white, picture)
    if cut is not None:
        return _cut_out(cut, AlphaMethod.DIFFERENCE)
    return _cut_out(alpha.key(drawing.on_white), AlphaMethod.KEY)


def _cut_out(picture: alpha.Picture | None, method: AlphaMethod) -> Result:
    if picture is None:
        raise AlphaUnavailable("no background was found to make transparent; ask for a plain background")
    return Result(alpha.quantise(picture), method)
