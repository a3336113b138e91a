"""What a picture's file is made of: bounded, and cut down to what its pixels need, before Pillow sees it.

Pure parsing in linear time; unpacks nothing but a PNG's colour profile, within a bound. Knows nothing of Pillow.
"""

import struct
from dataclasses import dataclass, field

from kleinserve.core import Size

WEBP_CHUNKS_MAX = 1024  # a still picture has at most 7 kinds of them, once each


class Excess(Exception):
    """A file that is built of more parts than any camera or editor writes: what, how many, and the limit."""

    def __init__(self, what: str, value: int, limit: int):
        super().__init__(f"{what}: {value}; at most {limit}")


@dataclass(frozen=True)
class File:
    """A still picture's file as it may be decoded. `size` by its header, not turned upright.

    `frames`: more than 1 in an animated PNG. `metadata`: what has been taken out of the data, by Pillow's names:
    "exif" and "icc_profile".
    """

    size: Size
    data: bytes
    frames: int = 1
    metadata: dict[str | tuple[int, int], bytes] = field(default_factory=dict)


def count_webp(data: bytes) -> File:
    """A WebP as it is, its chunks counted; libwebp reads it in linear time. Raises: ValueError, Excess."""
    position, count = 12, 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position, count = position + 8 + length + length % 2, count + 1
        if count > WEBP_CHUNKS_MAX:
            raise Excess("WebP chunks", count, WEBP_CHUNKS_MAX)
    return File(_webp_size(data), data)


def _webp_size(data: bytes) -> Size:
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X" and len(head) == 10:
        return Size(1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a" and len(head) == 10:
        width, height = struct.unpack("<HH", head[6:10])
        return Size(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L" and head[:1] == b"\x2f" and len(head) >= 5:
        bits = int.from_bytes(head[1:5], "little")
        return Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    raise ValueError("no WebP header")
