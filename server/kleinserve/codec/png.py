"""A PNG cut down to its pixels: IHDR, PLTE, tRNS, one IDAT, IEND. EXIF and the colour profile are taken out.

A critical chunk must be whole. An ancillary one that is not, or that nothing here reads, is left out, as libpng and
browsers do.
"""

import struct
import zlib
from collections.abc import Iterator

from kleinserve.codec.structure import Excess, File
from kleinserve.core import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNKS_MAX = 16_384  # 10 MiB in IDATs of 640 bytes; libpng writes 8192 bytes in each
PROFILE_BYTES_MAX = 4 * 1024 * 1024  # unpacked; the largest that printers and monitors come with are about 2 MiB
ANCILLARY = (b"acTL", b"fcTL", b"tRNS", b"iCCP", b"eXIf")  # what is read besides the critical ones
TRNS_BYTES = {0: 2, 2: 6}  # by colour type: grey, RGB


def strip(data: bytes) -> File:
    """The file's pixels and what tells their meaning.

    Raises: ValueError where a critical chunk is missing or damaged, Excess for too many chunks.
    """
    first: dict[bytes, bytes] = {}  # the first whole chunk of its kind is the one that counts
    pixels: list[bytes] = []
    for kind, body in _chunks(data):
        if kind == b"IDAT":
            pixels.append(body)
        elif kind == b"acTL" and kind in first:
            first[kind] = b""  # two of them make no animation
        elif not pixels or kind == b"eXIf":  # EXIF alone may follow the pixels
            first.setdefault(kind, body)
    header = first.get(b"IHDR", b"")
    if len(header) != 13 or not pixels:
        raise ValueError("no header or no pixels")
    width, height = struct.unpack_from(">II", header)
    if not width or not height:
        raise ValueError("no width or no height")
    parts = [_chunk(b"IHDR", header)]
    if b"PLTE" in first:
        parts.append(_chunk(b"PLTE", first[b"PLTE"]))
    if _is_transparency(first.get(b"tRNS", b""), header[9], first.get(b"PLTE", b"")):
        parts.append(_chunk(b"tRNS", first[b"tRNS"]))
    parts += [_chunk(b"IDAT", b"".join(pixels)), _chunk(b"IEND", b"")]
    return File(Size(width, height), SIGNATURE + b"".join(parts), _frames(first), _metadata(first))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk that is read, up to IEND: its kind and body, which its checksum has confirmed."""
    position, count, kind = len(SIGNATURE), 0, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ValueError("the file ends before IEND")
        length, kind = struct.unpack_from(">I4s", data, position)
        start, position, count = position + 8, position + 12 + length, count + 1  # a checksum of 4 bytes follows it
        if position > len(data) or not kind.isalpha():
            raise ValueError("the file ends inside a chunk, or this is none")
        if count > CHUNKS_MAX:
            raise Excess("PNG chunks", count, CHUNKS_MAX)
        is_critical = kind[:1].isupper()
        if not is_critical and kind not in ANCILLARY:
            continue
        body = data[start : start + length]
        if _checksum(kind, body) == data[position - 4 : position]:
            yield kind, body
        elif is_critical:
            raise ValueError("wrong checksum of a critical chunk")


def _checksum(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + _checksum(kind, body)


def _is_transparency(body: bytes, colour_type: int, palette: bytes) -> bool:
    """Whether libpng takes this tRNS: the length must fit the colour type."""
    if colour_type == 3:
        return 0 < len(body) <= len(palette) // 3
    return len(body) == TRNS_BYTES.get(colour_type)


def _frames(first: dict[bytes, bytes]) -> int:
    """Frames of the animation; the picture counts as one more where it is not the animation's first frame."""
    control = first.get(b"acTL", b"")
    frames = int.from_bytes(control[:4], "big") if len(control) == 8 else 0
    if not 0 < frames < 2**31:
        return 1
    return frames if b"fcTL" in first else frames + 1


def _metadata(first: dict[bytes, bytes]) -> dict[str | tuple[int, int], bytes]:
    metadata: dict[str | tuple[int, int], bytes] = {}
    if exif := first.get(b"eXIf"):
        metadata["exif"] = exif
    if profile := _profile(first.get(b"iCCP", b"")):
        metadata["icc_profile"] = profile
    return metadata


def _profile(body: bytes) -> bytes:
    """The colour profile of an iCCP chunk; empty where it cannot be unpacked or exceeds the bound."""
    _, _, packed = body.partition(b"\0")
    if packed[:1] != b"\0":  # the one way of packing that there is
        return b""
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], PROFILE_BYTES_MAX)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""
