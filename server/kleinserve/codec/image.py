"""The final image as a file. The same pixels, options and provenance give the same bytes."""

import hashlib
import io
from collections.abc import Callable

import imagecodecs
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import putchunk

from kleinserve.codec import alpha
from kleinserve.codec.provenance import Provenance, packet
from kleinserve.core import AlphaMethod, EncodedImage, ImageFormat, Output, Pixels

JPEG_QUALITY_DEFAULT = 90

# 1 MP of smooth colour with grain, one core: 35 ms and 2.0 MB; by Pillow's level 1 115 ms and 2.3 MB. See docs/PERF.md.
PNG_OPTIONS = {"level": 1, "strategy": imagecodecs.PNG.STRATEGY.RLE, "filter": imagecodecs.PNG.FILTER.SUB}
PNG_HEADER_BYTES = 33  # the signature and IHDR, which is first by the standard

# The same picture, lossless: method 0 29 ms and 2.1 MB, method 4 297 ms and 1.8 MB. At quality 80: method 0 25 ms and
# 159 KB, method 4 84 ms and 139 KB; whoever asks for lossy WebP asks for small files.
WEBP_LOSSLESS_METHOD, WEBP_LOSSY_METHOD = 0, 4


def encode(pixels: Pixels, output: Output, alpha_method: AlphaMethod, provenance: Provenance) -> EncodedImage:
    """The file that the request asked for: RGBA, opaque where the pixels have no alpha; JPEG is RGB, on white.

    Straight alpha; colour is 0 where alpha is 0. PNG and WebP carry the provenance, the prompt only with
    `output.embed_prompt`. WebP leaves out an alpha that is 255 everywhere, which its readers then give as RGB.
    Cost: 15 to 110 ms a megapixel; off the event loop and off the engine's thread.
    """
    image = alpha.cleared(as_image(pixels).convert("RGBA"))
    xmp = packet(provenance, pixels.size, with_prompt=output.embed_prompt)
    data = WRITERS[output.format](image, output.quality, xmp)
    return EncodedImage(output.format, pixels.size, alpha_method, data, hashlib.sha256(data).digest())


def as_image(pixels: Pixels) -> Image.Image:
    """The pixels as Pillow holds them."""
    mode = {3: "RGB", 4: "RGBA"}[pixels.channels]
    return Image.frombytes(mode, (pixels.size.width, pixels.size.height), pixels.data)


def _png(image: Image.Image, quality: int, xmp: str) -> bytes:
    data, file = imagecodecs.png_encode(np.asarray(image), **PNG_OPTIONS), io.BytesIO()
    file.write(data[:PNG_HEADER_BYTES])
    putchunk(file, b"iTXt", b"XML:com.adobe.xmp", bytes(5), xmp.encode())  # not compressed, of no language
    file.write(data[PNG_HEADER_BYTES:])
    return file.getvalue()


def _webp(image: Image.Image, quality: int, xmp: str) -> bytes:
    """Lossless keeps the hidden colour, which is 0. Lossy lets libwebp choose it: a hard edge to black would show."""
    if quality == 0:
        return _saved(image, format="WEBP", lossless=True, method=WEBP_LOSSLESS_METHOD, exact=True, xmp=xmp.encode())
    return _saved(image, format="WEBP", quality=quality, method=WEBP_LOSSY_METHOD, xmp=xmp.encode())


def _jpeg(image: Image.Image, quality: int, xmp: str) -> bytes:
    return _saved(alpha.on_white(image), format="JPEG", quality=quality or JPEG_QUALITY_DEFAULT)


def _raw(image: Image.Image, quality: int, xmp: str) -> bytes:
    return image.tobytes()


def _saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]  # Pillow types `format` and nothing else
    return file.getvalue()


WRITERS: dict[ImageFormat, Callable[[Image.Image, int, str], bytes]] = {
    ImageFormat.PNG: _png,
    ImageFormat.WEBP: _webp,
    ImageFormat.JPEG: _jpeg,
    ImageFormat.RAW_RGBA: _raw,
}
