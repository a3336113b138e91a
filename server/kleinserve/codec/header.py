"""What a reference says of itself before it is decoded: format, size, orientation.

Knows nothing of limits: reference.py decides what is refused.
"""

import io
import warnings

from PIL import ExifTags, Image

from kleinserve.codec import jpeg, png, structure
from kleinserve.codec.structure import File
from kleinserve.core import Size

FORMATS = ("PNG", "JPEG", "WEBP")
PNG_DEPTH_OFFSET = 24  # IHDR is the first chunk: signature 8, length 4, kind 4, width 4, height 4

# Pillow's own cap only warns up to twice its value. Ours is lower, is compared with the header, and has an answer.
Image.MAX_IMAGE_PIXELS = None
# What Pillow thinks of a caller's metadata is no line for the server's log, and each distinct text would be kept.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read(data: bytes) -> File:
    """The file's structure, bounded; nothing is decoded. Raises: ValueError, Excess."""
    if data.startswith(png.SIGNATURE):
        return png.strip(data)
    if data.startswith(b"\xff\xd8\xff"):
        return jpeg.strip(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return structure.count_webp(data)
    raise ValueError("neither PNG nor JPEG nor WebP")


def opened(file: File) -> Image.Image:
    """The image with its header read and no pixel decoded. Raises whatever Pillow raises for these bytes."""
    image = Image.open(io.BytesIO(file.data), formats=FORMATS)
    image.info |= file.metadata
    depth, transparent = file.data[PNG_DEPTH_OFFSET], image.info.get("transparency")
    if image.format != "PNG" or transparent is None:
        return image
    if image.mode == "L" and depth in (2, 4):
        image.info["transparency"] = transparent * 255 // (2**depth - 1)  # the pixels are scaled to 0..255, it is not
    elif image.mode == "RGB" and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def upright_size(image: Image.Image) -> Size:
    """Width and height after the EXIF orientation is applied."""
    width, height = image.size
    return Size(height, width) if orientation(image) >= 5 else Size(width, height)  # 5 to 8 swap the axes


def orientation(image: Image.Image) -> int:
    """The orientation that EXIF proper says, 1 to 8; 1 where there is none or it cannot be read, as browsers do.

    XMP's `tiff:Orientation`, to which Pillow's own reading falls back, and EXIF inside PNG text turn nothing.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value = exif.get(ExifTags.Base.Orientation)
    except Exception:  # a hostile EXIF block fails in many ways, and none of them is the picture's fault
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
