"""What is wrong beside a PNG's pixels is ignored, what is wrong with them is refused."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from kleinserve.codec import png, reference
from kleinserve.core import Pixels
from kleinserve.errors import ReferenceUnreadable, ReferenceUnsupported
from PIL import Image

from tests.codec.files import chunk, exif, picture, saved, swapped_profile
from tests.codec.files import png as made

MIB = 1024 * 1024
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PLAIN = saved(picture())


def decoded(data: bytes) -> Pixels:
    reference.check(0, data, bytes_max=10 * MIB, pixels_max=25_000_000)
    return reference.decode(0, data, keep_alpha=True)


def damaged(kind: bytes, body: bytes) -> bytes:
    """The chunk with a wrong checksum."""
    return chunk(kind, body)[:-1] + b"?"


def with_chunks(*before: bytes, after: bytes = b"") -> bytes:
    """The plain picture with these chunks before and after its pixels."""
    return PLAIN[:33] + b"".join(before) + PLAIN[33:-12] + after + PLAIN[-12:]


BODIES = {
    b"pHYs": struct.pack(">IIB", 1, 1, 1),
    b"tEXt": b"Comment\0text",
    b"zTXt": b"Comment\0\0" + zlib.compress(b"text"),
    b"iTXt": b"Comment\0\0\0\0\0text",
    b"eXIf": exif(6).tobytes().removeprefix(b"Exif\0\0"),
    b"iCCP": b"profile\0\0" + zlib.compress(b"profile"),
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": bytes(32),
    b"sRGB": b"\0",
    b"tRNS": bytes(6),
    b"acTL": struct.pack(">II", 2, 0),
    b"tIME": bytes(7),
    b"teSt": b"anything",
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_damaged_ancillary_chunk_changes_nothing(kind: bytes) -> None:
    """A wrong checksum, an empty body or a body cut short leaves the picture as it is without the chunk."""
    for bad in (damaged(kind, BODIES[kind]), chunk(kind, b""), chunk(kind, b"\0"), damaged(kind, b"")):
        assert decoded(with_chunks(bad)) == decoded(PLAIN)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_packed_text_and_profiles_of_any_size_are_no_obstacle(kind: bytes) -> None:
    """Text and profiles that unpack to much more than 1 MiB are not unpacked, and the picture is read."""
    head = b"Comment\0\1\0\0\0" if kind == b"iTXt" else b"Comment\0\0"
    assert decoded(with_chunks(chunk(kind, head + zlib.compress(bytes(64 * MIB))))) == decoded(PLAIN)
    assert decoded(with_chunks(after=chunk(kind, head + zlib.compress(bytes(64 * MIB))))) == decoded(PLAIN)


def test_a_profile_of_over_1_mib_is_applied() -> None:
    """A profile that is whole counts up to 4 MiB unpacked, as in browsers."""
    small = swapped_profile()
    large = struct.pack(">I", 2 * MIB) + small[4:] + bytes(2 * MIB - len(small))
    packed = [with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))) for profile in (small, large)]
    assert decoded(packed[1]) == decoded(packed[0]) != decoded(PLAIN)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"ABCD"])
def test_a_damaged_critical_chunk_is_unreadable(kind: bytes) -> None:
    """The picture itself must be whole: a wrong checksum of a critical chunk is REFERENCE_UNREADABLE."""
    whole = saved(picture().quantize(16)) if kind == b"PLTE" else with_chunks(chunk(b"ABCD", b"?"))
    at = whole.index(kind)
    end = at + 4 + struct.unpack_from(">I", whole, at - 4)[0]
    with pytest.raises(ReferenceUnreadable):
        decoded(whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :])


@pytest.mark.parametrize(
    ("colour_type", "row", "bad"), [(0, bytes(64), bytes(1)), (2, bytes(192), bytes(2)), (3, bytes(64), bytes(3))]
)
def test_a_transparency_that_does_not_fit_is_ignored(colour_type: int, row: bytes, bad: bytes) -> None:
    """tRNS of the wrong length for the colour type, or longer than the palette, makes nothing transparent."""
    palette = chunk(b"PLTE", bytes(6)) if colour_type == 3 else b""
    assert set(decoded(made(64, 64, 8, colour_type, row, palette + chunk(b"tRNS", bad))).data[3::4]) == {255}


@pytest.mark.parametrize("kind", ["XMP", "ImageMagick", "late XMP"])
def test_only_exif_proper_turns(kind: str) -> None:
    """XMP's tiff:Orientation and ImageMagick's EXIF in text turn nothing; eXIf does, wherever it stands."""
    raw = b"\nexif\n%8d\n" % len(exif(6).tobytes()) + exif(6).tobytes().hex().encode() + b"\n"
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    data = {
        "XMP": with_chunks(xmp),
        "ImageMagick": with_chunks(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))),
        "late XMP": with_chunks(after=xmp),
    }[kind]
    assert decoded(data) == decoded(PLAIN)
    turned = chunk(b"eXIf", BODIES[b"eXIf"])
    assert decoded(with_chunks(turned)) == decoded(with_chunks(after=turned)) != decoded(PLAIN)


def test_pixels_in_any_number_of_chunks_are_the_same() -> None:
    """IDATs of one byte, empty ones and foreign chunks between them read as one."""
    packed = zlib.compress((b"\0" + bytes(range(192))) * 64)
    whole = made(64, 64, 8, 2, bytes(range(192)))
    split = b"".join(chunk(b"IDAT", bytes([byte])) + chunk(b"IDAT", b"") + chunk(b"teSt", b"?") for byte in packed)
    assert decoded(whole[:33] + split + chunk(b"IEND", b"")) == decoded(whole)


def test_too_many_chunks_are_named_with_the_limit() -> None:
    """One chunk over the bound is REFERENCE_UNSUPPORTED saying how many; at the bound the picture is read."""
    spare = chunk(b"teSt", b"") * (png.CHUNKS_MAX - 3)
    assert decoded(with_chunks(spare)) == decoded(PLAIN)
    with pytest.raises(ReferenceUnsupported, match=r"PNG chunks: 16385; at most 16384"):
        decoded(with_chunks(spare, chunk(b"teSt", b"")))


@pytest.mark.parametrize(
    ("frames", "controls", "is_animated"), [(1, 1, False), (1, 0, True), (2, 1, True), (0, 0, False)]
)
def test_what_is_animated(frames: int, controls: int, is_animated: bool) -> None:
    """An animation of one frame is a still picture, unless the picture is not that frame; two animations are none."""
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 96, 80, 0, 0, 1, 1, 0, 0)) * controls
    animation = chunk(b"acTL", struct.pack(">II", frames, 0))
    assert decoded(with_chunks(animation, animation, control)) == decoded(PLAIN)
    data = with_chunks(animation, control)
    if not is_animated:
        assert decoded(data) == decoded(PLAIN)
        return
    with pytest.raises(ReferenceUnsupported, match="2 frames"):
        decoded(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_cutting_down_changes_no_pixel(mode: str) -> None:
    """Whatever Pillow writes is read to the bit as before it was cut down."""
    image = picture().convert("L").convert(mode) if mode == "I;16" else picture().convert(mode)
    ours = Image.open(BytesIO(png.strip(saved(image)).data))
    assert np.array_equal(np.asarray(ours), np.asarray(image))
