"""A step's small picture as a file. LATENT previews are not pictures: the engine makes them."""

import io

from PIL import Image

from kleinserve.codec import alpha
from kleinserve.codec.image import as_image
from kleinserve.core import Pixels, PreviewFormat

PREVIEW_BYTES_MAX = 1024 * 1024  # the contract's bound on Preview.data

SAVE_OPTIONS: dict[PreviewFormat, dict[str, object]] = {  # quickest first: a preview is looked at once
    PreviewFormat.JPEG: {"format": "JPEG", "quality": 80},
    PreviewFormat.PNG: {"format": "PNG", "compress_level": 1},
    PreviewFormat.WEBP: {"format": "WEBP", "quality": 80, "method": 0},
}


def encode(pixels: Pixels, format: PreviewFormat, max_edge: int) -> tuple[bytes, int, int]:
    """The file with its width and height: no edge over `max_edge` (0: as it is), never enlarged, at most 1 MiB.

    A file that exceeds the bound is halved until it fits. PNG and WebP keep alpha; JPEG is composited on white.
    """
    image = as_image(pixels)
    image = alpha.cleared(image) if image.mode == "RGBA" else image
    if format is PreviewFormat.JPEG:
        image = alpha.on_white(image)
    image = _fitted(image, max_edge or max(image.size))
    while len(data := _saved(image, format)) > PREVIEW_BYTES_MAX:
        image = _fitted(image, max(image.size) // 2)
    return data, image.width, image.height


def _fitted(image: Image.Image, max_edge: int) -> Image.Image:
    """The picture with its long edge at most this, in its own proportions."""
    scale = max_edge / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _saved(image: Image.Image, format: PreviewFormat) -> bytes:
    file = io.BytesIO()
    image.save(file, **SAVE_OPTIONS[format])  # type: ignore[arg-type]  # Pillow types `format` and nothing else
    return file.getvalue()
