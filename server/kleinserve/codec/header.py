"""What a reference says of itself before it is decoded: format, size, orientation.

Knows nothing of limits: reference.py decides what is refused.
"""

import io
import struct
import warnings
from collections.abc import Iterator

from PIL import ExifTags, Image

from kleinserve.core import Size

FORMATS = ("PNG", "JPEG", "WEBP")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_OFFSET = 24  # IHDR is the first chunk by the standard: signature 8, length 4, kind 4, width 4, height 4

# Pillow's own cap only warns up to twice its value. Ours is lower, is compared with the header, and has an answer.
Image.MAX_IMAGE_PIXELS = None
# What Pillow thinks of a caller's metadata is no line for the server's log, and each distinct text would be kept.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def opened(data: bytes) -> Image.Image:
    """The image with its header read and no pixel decoded. Raises whatever Pillow raises for these bytes."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def complete(image: Image.Image, data: bytes) -> None:
    """Make good what Pillow misses in a PNG: its end, an eXIf chunk after the pixels, the transparent colour's depth.

    Raises: ValueError for a PNG that ends before its end; Pillow lets one pass that has its pixels.
    """
    if image.format != "PNG":
        return
    for kind, start, end in _png_chunks(data):
        if kind == b"eXIf":
            image.info.setdefault("exif", data[start:end])
    depth, transparent = data[PNG_DEPTH_OFFSET], image.info.get("transparency")
    if image.mode == "L" and depth in (2, 4) and transparent is not None:
        image.info["transparency"] = transparent * 255 // (2**depth - 1)  # the pixels are scaled to 0..255, it is not
    elif image.mode == "RGB" and depth == 16 and transparent is not None:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def upright_size(image: Image.Image) -> Size:
    """Width and height after the EXIF orientation is applied."""
    width, height = image.size
    return Size(height, width) if orientation(image) >= 5 else Size(width, height)  # 5 to 8 swap the axes


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read, as browsers do."""
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # PNG's own getexif decodes the picture
    except Exception:  # a hostile EXIF block fails in many ways, and none of them is the picture's fault
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind and the bounds of its body, up to IEND."""
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if position + 8 > len(data):
            raise ValueError("the file ends before IEND")
        length, kind = struct.unpack_from(">I4s", data, position)
        start, position = position + 8, position + 12 + length  # a checksum of 4 bytes follows the body
        if position > len(data):
            raise ValueError("the file ends inside a chunk")
        yield kind, start, start + length
