"""A WebP's header says its size before Pillow sees it, and its chunks are bounded."""

import pytest
from kleinserve.codec import reference, structure
from kleinserve.core import Size
from kleinserve.errors import ReferenceUnsupported

from tests.codec.files import exif, picture, saved
from tests.codec.hostile import webp_with_chunks

LIMITS = {"bytes_max": 10 * 2**20, "pixels_max": 25_000_000}


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif(1)}, {"lossless": True, "exif": exif(1)}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_every_kind_of_webp(mode: str, options: dict[str, object]) -> None:
    """Lossy, lossless and extended files say their size in their own way, all of which are read."""
    assert structure.count_webp(saved(picture(201, 103, mode), "WEBP", **options)).size == Size(201, 103)


def test_webp_chunks_are_bounded() -> None:
    """A thousand foreign chunks are read past, more are REFERENCE_UNSUPPORTED with value and limit."""
    assert reference.check(0, webp_with_chunks(1000), **LIMITS) == Size(64, 64)
    with pytest.raises(ReferenceUnsupported, match="WebP chunks: 1025; at most 1024"):
        reference.check(0, webp_with_chunks(1100), **LIMITS)


def test_xmp_turns_no_webp() -> None:
    """XMP's tiff:Orientation turns nothing, EXIF's does."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert reference.check(0, saved(picture(), "WEBP", xmp=xmp), **LIMITS) == Size(96, 80)
    assert reference.check(0, saved(picture(), "WEBP", xmp=xmp, exif=exif(6)), **LIMITS) == Size(80, 96)
