"""A JPEG cut down to its first picture and the segments that its pixels need. EXIF and the profile are taken out."""

import re
from dataclasses import dataclass, field

from kleinserve.codec.structure import Excess, File
from kleinserve.core import Size

SEGMENTS_MAX = 2048  # a profile takes at most 255, a FLIR thermal picture about 100
SCANS_MAX = 64  # libjpeg's progressive files have 10, mozjpeg's about 15
FILL_BYTES_MAX = 65_536  # padding between segments; the standard allows any, cameras write at most a few

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
STANDALONE = (0x01, *range(0xD0, 0xD8))  # TEM and the restarts have no body
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without the tables that stand among them
APP_BYTES_MIN = {0xE0: 14, 0xEE: 12}  # JFIF and Adobe say what the channels are; libjpeg ignores shorter ones
NEEDED = FRAMES | {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, SOS}  # tables, lines, restarts

# Between scans' bytes 0xFF is followed by 0, a restart or another 0xFF; anything else is the next segment's marker.
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
NEXT_SEGMENT = re.compile(rb"\xff[^\x00\xff]")  # whatever stands before it is padding


@dataclass
class _Walk:
    """What has been found so far."""

    parts: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    size: Size | None = None
    exif: list[bytes] = field(default_factory=list)
    profile: list[bytes] = field(default_factory=list)
    segments: int = 0
    scans: int = 0
    fill_bytes: int = 0


def strip(data: bytes) -> File:
    """The file's first picture and what tells its meaning; comments, thumbnails, XMP and what follows it are left out.

    Raises: ValueError where a segment is damaged or the end is missing, Excess for too many parts.
    """
    walk, position = _Walk(), 2
    while True:
        match = NEXT_SEGMENT.search(data, position)
        if match is None:
            raise ValueError("the file ends before its end marker")
        walk.fill_bytes += match.start() - position
        _bound("JPEG fill bytes", walk.fill_bytes, FILL_BYTES_MAX)
        marker, position = data[match.end() - 1], match.end()
        if marker == EOI:
            break
        if marker not in STANDALONE:
            position = _segment(walk, data, marker, position)
    if walk.size is None or not walk.scans:
        raise ValueError("no frame or no scan")
    return File(walk.size, b"".join([*walk.parts, b"\xff\xd9"]), metadata=_metadata(walk))


def _segment(walk: _Walk, data: bytes, marker: int, position: int) -> int:
    """Take or leave one segment, with the scan that follows it. Returns where the next one may begin."""
    length = int.from_bytes(data[position : position + 2], "big")
    end = position + length
    if length < 2 or end > len(data) or marker < 0xC0 or marker == SOI:
        raise ValueError("the file ends inside a segment, or this is none")
    walk.segments += 1
    _bound("JPEG segments", walk.segments, SEGMENTS_MAX)
    body = data[position + 2 : end]
    if marker in FRAMES and walk.size is None:
        walk.size = Size(int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
    if marker == SOS:
        end = _scan(walk, data, end)
    if marker in NEEDED or len(body) >= APP_BYTES_MIN.get(marker, 65_536):
        walk.parts.append(data[position - 2 : end])
    elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
        walk.exif.append(body[6:])
    elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
        walk.profile.append(body[12:])
    return end


def _scan(walk: _Walk, data: bytes, start: int) -> int:
    """Where the scan's bytes end: at the next marker."""
    walk.scans += 1
    _bound("JPEG scans", walk.scans, SCANS_MAX)
    match = NEXT_MARKER.search(data, start)
    if match is None:
        raise ValueError("the file ends inside a scan")
    walk.fill_bytes += 2 * data.count(b"\xff\xff", start, match.start())
    _bound("JPEG fill bytes", walk.fill_bytes, FILL_BYTES_MAX)
    return match.start()


def _bound(what: str, value: int, limit: int) -> None:
    if value > limit:
        raise Excess(what, value, limit)


def _metadata(walk: _Walk) -> dict[str | tuple[int, int], bytes]:
    """EXIF and the profile, each of any number of segments; a profile's say their place and how many there are."""
    metadata: dict[str | tuple[int, int], bytes] = {}
    if walk.exif:
        metadata["exif"] = b"".join(walk.exif)
    pieces = sorted(walk.profile)
    if pieces and pieces[0][1] == len(pieces):
        metadata["icc_profile"] = b"".join(piece[2:] for piece in pieces)
    return metadata
