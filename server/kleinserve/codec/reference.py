"""Reference images: refused by their headers, or decoded into what the model sees.

Knows nothing of requests beyond a reference's index, which the errors name.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from kleinserve.codec import alpha, colour, header
from kleinserve.codec.structure import Excess
from kleinserve.core import EDGE_MULTIPLE, Pixels, Size
from kleinserve.errors import ReferenceTooLarge, ReferenceUnreadable, ReferenceUnsupported, RefusedReference

EDGE_MIN = 64  # px; this and the next two are the stock pipeline's
ASPECT_MAX = 8
AREA_MAX = 1024 * 1024  # px; anything larger is scaled down to it

TURNS = {  # by EXIF orientation: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check(index: int, data: bytes, *, bytes_max: int, pixels_max: int) -> Size:
    """The upright size of a reference that is worth decoding. Cost and errors: as `read_header`."""
    return read_header(index, data, bytes_max=bytes_max, pixels_max=pixels_max)[1]


def read_header(index: int, data: bytes, *, bytes_max: int, pixels_max: int) -> tuple[Image.Image, Size]:
    """A reference that is worth decoding, and its upright size, from its header alone.

    Cost:   a millisecond for each megabyte, a second for a hostile file of 10 MiB: not for the event loop. No pixel
            is decoded.
    Raises: ReferenceTooLarge, ReferenceUnreadable, ReferenceUnsupported.
    """
    if not data:
        raise ReferenceUnreadable(index, "empty; a PNG, JPEG or WebP image is required")
    if len(data) > bytes_max:
        raise ReferenceTooLarge(index, f"{len(data)} bytes; at most {bytes_max}")
    with _readable(index, "not a whole PNG, JPEG or WebP image"):
        file = header.read(data)
        if file.size.pixels > pixels_max:
            raise ReferenceTooLarge(index, f"{file.size} is {file.size.pixels} pixels; at most {pixels_max}")
        image = header.opened(file)
        size, frames = header.upright_size(image), max(file.frames, getattr(image, "n_frames", 1))
    if frames > 1:
        raise ReferenceUnsupported(index, f"{frames} frames; a still image is required")
    if min(size.width, size.height) < EDGE_MIN:
        raise ReferenceUnsupported(index, f"{size} pixels; each edge must be at least {EDGE_MIN}")
    if max(size.width, size.height) > ASPECT_MAX * min(size.width, size.height):
        raise ReferenceUnsupported(
            index, f"{size} pixels; the long edge may be at most {ASPECT_MAX} times the short one"
        )
    return image, size


def decode(index: int, data: bytes, *, keep_alpha: bool) -> Pixels:
    """A checked reference as the model sees it: `read_header`, unlimited, and `read_pixels` in one."""
    with _readable(index, "not a whole PNG, JPEG or WebP image"):
        image = header.opened(header.read(data))
    return read_pixels(index, image, keep_alpha=keep_alpha)


def read_pixels(index: int, image: Image.Image, *, keep_alpha: bool) -> Pixels:
    """An opened reference as the model sees it, of the size that `model_size` says.

    `keep_alpha` is for a VAE of 4 channels: RGBA with straight alpha. Otherwise RGB, composited on white.
    Raises: ReferenceUnreadable where the pixels are damaged or cut short, which no header tells.
    Source: diffusers 0.42.1, Flux2ImageProcessor and Flux2KleinPipeline.__call__; the orientation, colour and alpha
            handling before it are ours.
    """
    with _readable(index, "damaged or truncated image"):
        turn = TURNS.get(header.orientation(image))
        image.load()
        image = colour.to_srgb(image)
    if turn is not None:
        image = image.transpose(turn)
    # Pillow resizes RGBA with its colour weighted by alpha, so that nothing invisible bleeds into the edges.
    image = alpha.cleared(_prepared(image.convert("RGBA"))) if keep_alpha else _prepared(alpha.on_white(image))
    return Pixels(Size(*image.size), len(image.getbands()), image.tobytes())


def model_size(size: Size) -> Size:
    """The size at which the model sees a reference of this upright size."""
    scaled = _scaled(size)
    return Size(scaled.width - scaled.width % EDGE_MULTIPLE, scaled.height - scaled.height % EDGE_MULTIPLE)


def _scaled(size: Size) -> Size:
    """At most 1024² pixels, by the stock pipeline's arithmetic to the last digit."""
    if size.pixels <= AREA_MAX:
        return size
    scale = math.sqrt(AREA_MAX / size.pixels)
    return Size(int(size.width * scale), int(size.height * scale))


def _prepared(image: Image.Image) -> Image.Image:
    """Scaled down if over 1024² pixels, then the centre of it whose edges are multiples of 16."""
    size = Size(*image.size)
    scaled, seen = _scaled(size), model_size(size)
    if scaled != size:
        image = image.resize((scaled.width, scaled.height), Image.Resampling.LANCZOS)
    left, top = (scaled.width - seen.width) // 2, (scaled.height - seen.height) // 2
    return image.crop((left, top, left + seen.width, top + seen.height))


@contextmanager
def _readable(index: int, description: str) -> Iterator[None]:
    """Turn whatever Pillow raises for these bytes into ReferenceUnreadable: hostile files fail in every way."""
    try:
        yield
    except (RefusedReference, MemoryError):
        raise
    except Excess as excess:
        raise ReferenceUnsupported(index, str(excess)) from excess
    except Exception as error:
        raise ReferenceUnreadable(index, description) from error
