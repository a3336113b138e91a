"""References: refused with the contract's reasons, prepared as the stock pipeline does (codec/{colour,header}.py)."""

import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kleinserve.codec import reference
from kleinserve.core import Pixels, Size
from kleinserve.errors import KleinError, ReferenceTooLarge, ReferenceUnreadable, ReferenceUnsupported
from PIL import Image, ImageCms

from tests.codec.files import chunk, exif, picture, png, saved, swapped_profile

BYTES_MAX, PIXELS_MAX = 10 * 1024 * 1024, 25_000_000
FRAMES = {"save_all": True, "append_images": [picture(seed=1)]}
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 * 1024 * 1024)))
# A lossless WebP of one colour, whose header is then made to say 16383 × 16383: 14 bits of width - 1, 14 of height - 1.
LARGE_WEBP = saved(Image.new("RGB", (64, 64)), "WEBP", lossless=True).replace(
    b"\x2f\x3f\xc0\x0f\x00", b"\x2f\xfe\xbf\xff\x0f"
)
WHOLE = {
    "png": saved(picture()),
    "jpeg": saved(picture(), "JPEG"),
    "progressive": saved(picture(), "JPEG", progressive=True),
    "webp": saved(picture(), "WEBP"),
    "lossless": saved(picture(mode="RGBA"), "WEBP", lossless=True),
}


def check(data: bytes) -> Size:
    return reference.check(0, data, bytes_max=BYTES_MAX, pixels_max=PIXELS_MAX)


def array(pixels: Pixels) -> np.ndarray:
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.size.height, pixels.size.width, pixels.channels)


def decoded(data: bytes, *, keep_alpha: bool = False) -> np.ndarray:
    check(data)
    return array(reference.decode(0, data, keep_alpha=keep_alpha))


REFUSED = [
    ("nothing", b"", ReferenceUnreadable),
    ("text", b"not an image at all", ReferenceUnreadable),
    ("an HTML page", b"<html><body>404</body></html>" * 100, ReferenceUnreadable),
    ("the PNG signature alone", b"\x89PNG\r\n\x1a\n", ReferenceUnreadable),
    ("the JPEG signature alone", b"\xff\xd8\xff", ReferenceUnreadable),
    ("an empty WebP", b"RIFF\x04\0\0\0WEBP", ReferenceUnreadable),
    ("a GIF", saved(picture(), "GIF"), ReferenceUnreadable),
    ("a TIFF", saved(picture(), "TIFF"), ReferenceUnreadable),
    ("a BMP", saved(picture(), "BMP"), ReferenceUnreadable),
    ("an SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="96" height="96"/>', ReferenceUnreadable),
    ("a PNG of no width", png(0, 64, 8, 2, b""), ReferenceUnreadable),
    ("a PNG without its end", WHOLE["png"][:-12], ReferenceUnreadable),
    ("a PNG cut inside its last chunk", WHOLE["png"][:-1], ReferenceUnreadable),
    ("an animated PNG", saved(picture(), "PNG", **FRAMES), ReferenceUnsupported),
    ("an animated WebP", saved(picture(), "WEBP", **FRAMES), ReferenceUnsupported),
    ("63 pixels wide", saved(picture(63, 64)), ReferenceUnsupported),
    ("63 pixels high", saved(picture(64, 63), "JPEG"), ReferenceUnsupported),
    ("over 8:1", saved(picture(513, 64)), ReferenceUnsupported),
    ("over 1:8", saved(picture(64, 513), "WEBP"), ReferenceUnsupported),
    ("a byte too many", WHOLE["png"] + b"\0" * (BYTES_MAX + 1 - len(WHOLE["png"])), ReferenceTooLarge),
    ("a pixel row too many", png(5000, 5001, 1, 0, b"\0" * 625), ReferenceTooLarge),
    ("a bomb of 21 KB", png(13000, 13000, 1, 0, b"\0" * 1625), ReferenceTooLarge),
    ("a bomb past Pillow's own cap", png(100_000, 100_000, 1, 0, b""), ReferenceTooLarge),
    ("a WebP of 268 megapixels", LARGE_WEBP, ReferenceTooLarge),
]


@pytest.mark.parametrize(("name", "data", "error"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_bad_files_are_refused_with_the_contracts_reason(name: str, data: bytes, error: type[KleinError]) -> None:
    """Each kind of unusable file is refused by its header with its own reason, naming the reference's field."""
    with pytest.raises(KleinError) as refused:
        reference.check(2, data, bytes_max=BYTES_MAX, pixels_max=PIXELS_MAX)
    assert type(refused.value) is error
    assert [violation.field for violation in refused.value.violations] == ["references[2].image"]
    assert "object at" not in refused.value.message  # Pillow's own messages name addresses


ACCEPTED = [
    ("64 by 64", saved(picture(64, 64)), Size(64, 64)),
    ("8:1", saved(picture(512, 64), "JPEG"), Size(512, 64)),
    ("1:8", saved(picture(64, 512), "WEBP"), Size(64, 512)),
    ("25 megapixels", png(5000, 5000, 1, 0, b"\0" * 625), Size(5000, 5000)),
    ("turned JPEG", saved(picture(96, 80), "JPEG", exif=exif(6)), Size(80, 96)),
    ("turned WebP", saved(picture(96, 80), "WEBP", exif=exif(8)), Size(80, 96)),
    ("turned PNG", saved(picture(96, 80), "PNG", exif=exif(5)), Size(80, 96)),
    ("upside down", saved(picture(96, 80), "JPEG", exif=exif(3)), Size(96, 80)),
    ("orientation 9", saved(picture(96, 80), "JPEG", exif=exif(9)), Size(96, 80)),
    ("broken EXIF", saved(picture(96, 80), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), Size(96, 80)),
    ("a photo with a second picture", saved(picture(96, 80), "MPO", **FRAMES), Size(96, 80)),
    ("one animation frame", saved(picture(96, 80), "WEBP", save_all=True), Size(96, 80)),
    ("text that unpacks to 64 MB", png(64, 64, 1, 0, b"\0" * 8, before=TEXT_BOMB), Size(64, 64)),
    ("trailing bytes", WHOLE["png"] + b"trailing", Size(96, 80)),
]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of the broken EXIF
@pytest.mark.parametrize(("data", "size"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_good_files_give_their_upright_size(data: bytes, size: Size) -> None:
    """A usable file passes the header checks with the size that it has once turned upright, and decodes."""
    assert check(data) == size
    assert reference.decode(0, data, keep_alpha=False).size == reference.model_size(size)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_unreadable(name: str) -> None:
    """A file that lost its end, be it one byte, is refused by its header or by its decoding, never drawn in part."""
    data = WHOLE[name]
    for length in range(len(data)):
        with pytest.raises(ReferenceUnreadable):
            decoded(data[:length])


@pytest.mark.filterwarnings("ignore")  # Pillow may warn of damage that it can read past
@pytest.mark.parametrize("name", WHOLE)
def test_damage_is_an_answer_and_never_a_crash(name: str) -> None:
    """A file with bytes changed, lost or added at random is decoded to its size or refused with a contract error."""
    chance = random.Random(name)
    for _ in range(200):
        data = bytearray(WHOLE[name])
        for _ in range(chance.randint(1, 8)):
            start = chance.randrange(len(data))
            data[start : start + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
        try:
            size = check(bytes(data))
            assert reference.decode(0, bytes(data), keep_alpha=True).size == reference.model_size(size)
        except (ReferenceUnreadable, ReferenceUnsupported, ReferenceTooLarge):
            continue


SIZES = st.tuples(st.integers(64, 5200), st.integers(64, 5200)).filter(
    lambda edges: max(edges) <= 8 * min(edges) and edges[0] * edges[1] <= PIXELS_MAX
)


@settings(deadline=None)
@given(SIZES)
def test_what_the_model_sees_is_never_too_small(edges: tuple[int, int]) -> None:
    """Every size that passes the checks is seen by the model in multiples of 16, at least 64 each, 1024² at most."""
    seen = reference.model_size(Size(*edges))
    assert min(seen.width, seen.height) >= 64
    assert seen.width % 16 == seen.height % 16 == 0
    assert seen.pixels <= 1024 * 1024


@settings(max_examples=20, deadline=None)
@given(SIZES, st.sampled_from([1, 6]), st.booleans())
def test_the_size_is_known_before_decoding(edges: tuple[int, int], orientation: int, keep_alpha: bool) -> None:
    """The size computed from the header is the size of the decoded reference, whatever its shape and orientation."""
    data = saved(Image.new("L", edges), "JPEG", exif=exif(orientation))
    assert reference.decode(0, data, keep_alpha=keep_alpha).size == reference.model_size(check(data))


@pytest.mark.parametrize("edges", [(96, 80), (101, 79), (1023, 1025), (1024, 1025), (2047, 333), (640, 4099)])
def test_references_are_prepared_as_the_stock_pipeline_prepares_them(edges: tuple[int, int]) -> None:
    """An upright RGB reference becomes, to the bit, what the stock pipeline's image processor makes of it."""
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    processor, image = Flux2ImageProcessor(vae_scale_factor=16), picture(*edges)
    stock = processor._resize_if_exceeds_area(image)
    width, height = (edge // 16 * 16 for edge in stock.size)
    stock = processor.preprocess(stock, height=height, width=width, resize_mode="crop")
    ours = decoded(saved(image))
    assert np.array_equal(stock[0].permute(1, 2, 0).numpy(), 2 * (ours.astype(np.float32) / 255) - 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "late PNG"])
def test_orientation_is_applied(format: str, orientation: int) -> None:
    """A picture stored turned or mirrored is decoded upright, wherever its file keeps the orientation."""
    upright = picture(96, 80)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation: the transposition that stored it
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    if format == "late PNG":
        whole = saved(stored)
        data = whole[:-12] + chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0")) + whole[-12:]
    else:
        data = saved(stored, format, exif=exif(orientation), **({"lossless": True} if format == "WEBP" else {}))
    assert np.abs(decoded(data).astype(int) - np.asarray(upright)).mean() < (3 if format == "JPEG" else 0.001)


# One colour per file: PNG fields depth, colour type, row, chunks before the pixels; what RGBA is read.
PIXEL_KINDS = [
    ("1-bit grey", 1, 0, b"\xff" * 8, b"", (255, 255, 255, 255)),
    ("1-bit grey, keyed", 1, 0, b"\xff" * 8, struct.pack(">H", 1), (0, 0, 0, 0)),
    ("2-bit grey", 2, 0, b"\x55" * 16, b"", (85, 85, 85, 255)),
    ("2-bit grey, keyed", 2, 0, b"\x55" * 16, struct.pack(">H", 1), (0, 0, 0, 0)),
    ("4-bit grey, another keyed", 4, 0, b"\x11" * 32, struct.pack(">H", 2), (17, 17, 17, 255)),
    ("4-bit grey, keyed", 4, 0, b"\x11" * 32, struct.pack(">H", 1), (0, 0, 0, 0)),
    ("8-bit grey", 8, 0, b"\x80" * 64, b"", (128, 128, 128, 255)),
    ("16-bit grey", 16, 0, b"\x80\x00" * 64, b"", (128, 128, 128, 255)),
    ("16-bit grey, dark", 16, 0, b"\x01\xff" * 64, b"", (1, 1, 1, 255)),
    ("16-bit grey, keyed", 16, 0, b"\x80\x01" * 64, b"\x80\x01", (0, 0, 0, 0)),
    ("16-bit grey, its neighbour keyed", 16, 0, b"\x80\x01" * 64, b"\x80\x02", (128, 128, 128, 255)),
    ("grey and alpha", 8, 4, b"\x80\x40" * 64, b"", (128, 128, 128, 64)),
    ("16-bit grey and alpha", 16, 4, b"\x80\x00\x40\x00" * 64, b"", (128, 128, 128, 64)),
    ("RGB", 8, 2, b"\x01\x80\xff" * 64, b"", (1, 128, 255, 255)),
    ("RGB, keyed", 8, 2, b"\x01\x80\xff" * 64, struct.pack(">HHH", 1, 128, 255), (0, 0, 0, 0)),
    ("16-bit RGB", 16, 2, b"\x01\x00\x80\x00\xff\x00" * 64, b"", (1, 128, 255, 255)),
    ("16-bit RGB, keyed", 16, 2, b"\x01\x00\x80\x00\xff\x00" * 64, b"\x01\x00\x80\x00\xff\x00", (0, 0, 0, 0)),
    ("RGBA", 8, 6, b"\x01\x80\xff\x40" * 64, b"", (1, 128, 255, 64)),
    ("16-bit RGBA", 16, 6, b"\x01\x00\x80\x00\xff\x00\x40\x00" * 64, b"", (1, 128, 255, 64)),
    ("RGBA, invisible", 8, 6, b"\x01\x80\xff\x00" * 64, b"", (0, 0, 0, 0)),
    ("palette", 8, 3, b"\x01" * 64, b"", (10, 20, 30, 255)),
    ("palette, transparent", 8, 3, b"\x01" * 64, b"\xff\x40", (10, 20, 30, 64)),
    ("4-bit palette, transparent", 4, 3, b"\x11" * 32, b"\xff\x40", (10, 20, 30, 64)),
]


@pytest.mark.parametrize("kind", PIXEL_KINDS, ids=[kind[0] for kind in PIXEL_KINDS])
def test_every_kind_of_pixel_is_read(kind: tuple[str, int, int, bytes, bytes, tuple[int, int, int, int]]) -> None:
    """Grey, palette, RGB, alpha and colour keys at every depth give their 8-bit RGBA, and on white without alpha."""
    _, depth, colour_type, row, key, rgba = kind
    palette = chunk(b"PLTE", bytes([90, 90, 90, 10, 20, 30])) if colour_type == 3 else b""
    data = png(64, 64, depth, colour_type, row, before=palette + (chunk(b"tRNS", key) if key else b""))
    assert (decoded(data, keep_alpha=True) == rgba).all()
    on_white = [round((colour * rgba[3] + 255 * (255 - rgba[3])) / 255) for colour in rgba[:3]]
    assert np.abs(decoded(data).astype(int) - on_white).max() <= 1


def test_hidden_colour_does_not_bleed_when_scaled_down() -> None:
    """A red disc on invisible green stays pure red to its edge after scaling, and colour is 0 where alpha is 0."""
    edge = 1500
    y, x = np.mgrid[:edge, :edge] - edge / 2
    rgba = np.where((x * x + y * y < 500 * 500)[..., None], (255, 0, 0, 255), (0, 255, 0, 0)).astype(np.uint8)
    seen = decoded(saved(Image.fromarray(rgba)), keep_alpha=True)
    assert seen.shape == (1024, 1024, 4)
    partial = (seen[..., 3] > 8) & (seen[..., 3] < 248)
    assert partial.sum() > 500
    assert seen[partial][:, 0].min() >= 225
    assert seen[..., 1].max() == 0
    assert (seen[seen[..., 3] == 0] == 0).all()


def test_an_embedded_profile_is_applied() -> None:
    """A picture in a profile whose red and blue are swapped is read with them swapped back."""
    swapped = swapped_profile()
    image = Image.new("RGB", (64, 64), (250, 20, 30))
    for format in ("PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        seen = decoded(saved(image, format, icc_profile=swapped, **options))
        assert seen[0, 0, 2] > 200 > 60 > seen[0, 0, 0], format
    with_alpha = image.copy()
    with_alpha.putalpha(100)
    seen = decoded(saved(with_alpha, icc_profile=swapped), keep_alpha=True)
    assert seen[0, 0, 2] > 200 > 60 > seen[0, 0, 0]
    assert seen[0, 0, 3] == 100


@pytest.mark.parametrize("profile", [b"broken", bytes(200), swapped_profile()], ids=["text", "zeros", "of RGB"])
def test_an_unusable_profile_is_ignored(profile: bytes) -> None:
    """A broken profile, or an RGB profile on a grey or CMYK picture, changes nothing."""
    for mode in ("L", "CMYK"):
        image = picture(mode=mode)
        plain, profiled = saved(image, "JPEG"), saved(image, "JPEG", icc_profile=profile)
        assert np.array_equal(decoded(plain), decoded(profiled)), mode


def test_an_srgb_profile_changes_nothing() -> None:
    """A picture that says it is sRGB, as most do, is read to the bit as without the profile."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decoded(saved(picture(), icc_profile=srgb)), decoded(saved(picture())))


@pytest.mark.parametrize(
    ("cmyk", "rgb"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_becomes_rgb(cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    """A CMYK JPEG is read in its own sense, ink as darkness, not inverted."""
    seen = decoded(saved(Image.new("CMYK", (64, 64), cmyk), "JPEG"))
    assert np.abs(seen[0, 0].astype(int) - rgb).max() <= 3
