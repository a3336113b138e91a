"""Final images: the file that was asked for, exact where the format is, the same bytes every time (codec/alpha.py)."""

import hashlib
import io
import zlib

import numpy as np
import pytest
from kleinserve.codec import image as codec
from kleinserve.codec.provenance import DIGITAL_SOURCE_TYPE, Provenance
from kleinserve.core import AlphaMethod, EncodedImage, ImageFormat, Output, Pixels, Size
from PIL import Image

from tests.codec.files import picture

PROVENANCE = Provenance("mini", 2**53 - 1, 4, "0.1.0", "a <red> fox & the colour \u7ea2")
SIZE = Size(80, 64)
RGB = Pixels(SIZE, 3, picture(80, 64).tobytes())
RGBA = Pixels(SIZE, 4, picture(80, 64, "RGBA").tobytes())
MIXED = Pixels(SIZE, 4, (b"\xc8\x64\x32\x00" * 40 + b"\x0a\x14\x1e\xff" * 40) * 64)


def encode(pixels: Pixels, format: ImageFormat, quality: int = 0, embed_prompt: bool = False) -> EncodedImage:
    return codec.encode(pixels, Output(format, quality, embed_prompt), AlphaMethod.NATIVE, PROVENANCE)


def opened(encoded: EncodedImage) -> Image.Image:
    return Image.open(io.BytesIO(encoded.data), formats=[encoded.format.name])


@pytest.mark.parametrize("pixels", [RGB, RGBA, MIXED], ids=["RGB", "RGBA", "hidden colour"])
@pytest.mark.parametrize("format", [ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.RAW_RGBA])
def test_lossless_formats_keep_every_pixel(pixels: Pixels, format: ImageFormat) -> None:
    """PNG, WebP of quality 0 and RAW_RGBA give back each visible pixel exactly, and colour 0 where alpha is 0."""
    encoded = encode(pixels, format)
    wanted = np.full((64, 80, 4), 255, np.uint8)
    wanted[..., : pixels.channels] = np.frombuffer(pixels.data, np.uint8).reshape(64, 80, pixels.channels)
    wanted[wanted[..., 3] == 0] = 0
    raw = encoded.data if format is ImageFormat.RAW_RGBA else opened(encoded).convert("RGBA").tobytes()
    assert raw == wanted.tobytes()


def test_png_is_rgba_even_where_opaque() -> None:
    """The PNG of an image without alpha is 8-bit RGBA with alpha 255."""
    png = opened(encode(RGB, ImageFormat.PNG))
    assert png.mode == "RGBA"
    assert png.getchannel("A").getextrema() == (255, 255)


def test_jpeg_is_composited_on_white() -> None:
    """A JPEG has no alpha: what was transparent is white."""
    jpeg = opened(encode(MIXED, ImageFormat.JPEG))
    assert jpeg.mode == "RGB"
    left, right = jpeg.getpixel((2, 30)), jpeg.getpixel((77, 30))
    assert min(left) >= 253
    assert max(right) <= 40


def test_lossy_webp_keeps_alpha_exactly() -> None:
    """A lossy WebP may change colour but not the outline: alpha is what it was, and visible colour is near."""
    webp = np.asarray(opened(encode(MIXED, ImageFormat.WEBP, quality=50)).convert("RGBA")).astype(int)
    wanted = np.frombuffer(MIXED.data, np.uint8).reshape(64, 80, 4)
    assert np.array_equal(webp[..., 3], wanted[..., 3])
    assert np.abs(webp - wanted)[wanted[..., 3] == 255].max() <= 8


@pytest.mark.parametrize("format", [ImageFormat.WEBP, ImageFormat.JPEG])
def test_quality_is_honoured(format: ImageFormat) -> None:
    """A lower quality makes a smaller file; JPEG's 0 is 90 to the byte, and WebP's 0 is lossless and the largest."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    sizes = [len(encode(Pixels(SIZE, 3, noise.tobytes()), format, quality).data) for quality in (1, 30, 60, 90, 100)]
    assert sizes == sorted(set(sizes))
    default = encode(Pixels(SIZE, 3, noise.tobytes()), format).data
    assert len(default) == sizes[3] if format is ImageFormat.JPEG else len(default) > sizes[3]


@pytest.mark.parametrize("format", ImageFormat)
def test_the_same_pixels_give_the_same_bytes(format: ImageFormat) -> None:
    """Encoding twice gives one file, and the hash is that of the file; the size and alpha method are passed on."""
    first, second = encode(RGBA, format, embed_prompt=True), encode(RGBA, format, embed_prompt=True)
    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).digest()
    assert (first.format, first.size, first.alpha_method) == (format, SIZE, AlphaMethod.NATIVE)


@pytest.mark.parametrize("embed_prompt", [False, True])
@pytest.mark.parametrize(("format", "quality"), [(ImageFormat.PNG, 0), (ImageFormat.WEBP, 0), (ImageFormat.WEBP, 80)])
def test_provenance_is_in_the_file(format: ImageFormat, quality: int, embed_prompt: bool) -> None:
    """PNG and WebP say in XMP that a model made them, which, and how; the prompt only when it was asked for."""
    encoded = encode(RGB, format, quality, embed_prompt)
    info = opened(encoded).info
    xmp = info["xmp"].decode()
    for fact in (DIGITAL_SOURCE_TYPE, "mini", "9007199254740991", ">4<", ">80<", ">64<", "0.1.0"):
        assert fact in xmp
    assert ("a &lt;red&gt; fox &amp; the colour \u7ea2" in xmp) == embed_prompt
    assert ("fox" in str(info)) == embed_prompt


def test_jpeg_and_raw_carry_no_provenance() -> None:
    """JPEG holds nothing but the picture, and RAW_RGBA is exactly 4 bytes a pixel."""
    assert b"xap" not in encode(RGB, ImageFormat.JPEG, embed_prompt=True).data
    assert len(encode(RGB, ImageFormat.RAW_RGBA, embed_prompt=True).data) == 4 * SIZE.pixels


def test_png_chunks_hold_no_time() -> None:
    """A PNG consists of its header, the provenance, the pixels and the end, all with right checksums."""
    data, kinds, position = encode(RGB, ImageFormat.PNG).data, [], 8
    while position < len(data):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        body = data[position + 4 : position + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(data[position + 8 + length : position + 12 + length])
        kinds.append(kind)
        position += 12 + length
    assert list(dict.fromkeys(kinds)) == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]
