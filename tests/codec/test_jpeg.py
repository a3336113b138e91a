"""What is wrong beside a JPEG's pixels is ignored; how it is built is bounded."""

import struct
from io import BytesIO

import numpy as np
import pytest
from kleinserve.codec import jpeg, reference
from kleinserve.core import Pixels
from kleinserve.errors import ReferenceUnreadable, ReferenceUnsupported
from PIL import Image

from tests.codec.files import exif, picture, saved, swapped_profile
from tests.codec.hostile import jpeg_with, many_scans

PLAIN = saved(picture(), "JPEG")
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/>'


def decoded(data: bytes) -> Pixels:
    reference.check(0, data, bytes_max=10 * 2**20, pixels_max=25_000_000)
    return reference.decode(0, data, keep_alpha=False)


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(*segments: bytes, whole: bytes = PLAIN) -> bytes:
    return whole[:2] + b"".join(segments) + whole[2:]


BESIDE = {
    "a cut Photoshop block": segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
    "a Photoshop block that is too short": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x02??"),
    "a cut JFIF segment": segment(0xE0, b"JFIF\0"),
    "a cut Adobe segment": segment(0xEE, b"Adobe"),
    "a cut profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a profile of which half is missing": segment(0xE2, b"ICC_PROFILE\0\1\2half"),
    "a cut index of pictures": segment(0xE2, b"MPF\0MM"),
    "an index of pictures that are not there": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0nothing"),
    "a comment": segment(0xFE, b"hello"),
    "XMP that says turned": segment(0xE1, XMP),
    "an empty segment of each application": b"".join(segment(0xE0 + number, b"") for number in range(16)),
    "padding": b"\xff" * 1000,
    "a second picture's thumbnail": segment(0xE1, b"http://other\0" + PLAIN[:1000]),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_pixels_changes_nothing(name: str) -> None:
    """A segment that is cut, broken or of no use leaves the picture as it is without it."""
    assert decoded(with_segments(BESIDE[name])) == decoded(PLAIN)


def test_exif_proper_turns_though_xmp_says_otherwise() -> None:
    """EXIF's orientation counts, XMP's does not, in either order."""
    turned = saved(picture(), "JPEG", exif=exif(6))
    assert decoded(with_segments(segment(0xE1, XMP.replace(b'"6"', b'"3"')), whole=turned)) == decoded(turned)
    assert decoded(turned).size != decoded(PLAIN).size


def test_a_profile_in_several_segments_is_applied() -> None:
    """Pieces of a profile count in the order of their numbers, wherever each stands."""
    profile = swapped_profile()
    halves = [bytes([number, 2]) + part for number, part in ((1, profile[:300]), (2, profile[300:]))]
    segments = [segment(0xE2, b"ICC_PROFILE\0" + half) for half in reversed(halves)]
    assert decoded(with_segments(*segments)) == decoded(saved(picture(), "JPEG", icc_profile=profile))


EXCESSIVE = {
    "JPEG segments: 2049; at most 2048": with_segments(segment(0xFE, b"") * 3000),
    "JPEG scans: 65; at most 64": many_scans(64, 80),
    "JPEG fill bytes: 100000; at most 65536": with_segments(b"\xff" * 100_000),
    "JPEG fill bytes: 200000; at most 65536": jpeg_with(in_scan=b"\xff" * 200_001),
}


@pytest.mark.parametrize("message", EXCESSIVE)
def test_what_no_camera_writes_is_named_with_the_limit(message: str) -> None:
    """Too many segments, scans or fill bytes are REFERENCE_UNSUPPORTED with value and limit."""
    with pytest.raises(ReferenceUnsupported, match=message):
        decoded(EXCESSIVE[message])


def test_many_scans_within_the_bound_are_read() -> None:
    """A progressive file of 64 scans is read."""
    assert decoded(many_scans(64, jpeg.SCANS_MAX)).size.width == 64


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 2}])
def test_cutting_down_changes_no_pixel(mode: str, options: dict[str, object]) -> None:
    """Whatever Pillow writes is read to the bit as before it was cut down."""
    data = saved(picture(200, 100, mode), "JPEG", **options)
    ours = Image.open(BytesIO(jpeg.strip(with_segments(*BESIDE.values(), whole=data)).data))
    assert np.array_equal(np.asarray(ours), np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xd9", PLAIN[:-2], PLAIN[:2] + b"\xff\x02" + PLAIN[2:], PLAIN[:40]])
def test_a_broken_frame_is_unreadable(data: bytes) -> None:
    """No frame, no end, an unknown marker, a cut segment: REFERENCE_UNREADABLE."""
    with pytest.raises(ReferenceUnreadable):
        decoded(data)
