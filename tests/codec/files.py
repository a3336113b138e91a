"""Image files for the tests: whole ones through Pillow, odd ones chunk by chunk."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 0x0112


def picture(width: int = 96, height: int = 80, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth blobs of colour (and alpha, from 0 to 255) that no two corners share."""
    channels = Image.getmodebands(mode)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze(), mode=mode).resize((width, height), Image.Resampling.BILINEAR)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The image as a file of this format."""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int, colour_type: int, row: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of equal rows, with further chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(b"\0" + row) for _ in range(height)) + packer.flush()
    pixels = chunk(b"IDAT", packed)
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    """An EXIF block that says how the picture is turned."""
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def swapped_profile() -> bytes:
    """The sRGB profile with the names of its red and blue primaries exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
