"""Any decoded picture as 8-bit sRGB, with straight alpha where it has some."""

import io

import numpy as np
from PIL import Image, ImageCms


def to_srgb(image: Image.Image) -> Image.Image:
    """The picture as RGB, or as RGBA if anything in it can be transparent.

    An embedded ICC profile is applied; one that is broken or belongs to another colour space is ignored, as browsers
    do. Without one the values count as sRGB; CMYK then takes Pillow's plain formula.
    """
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    is_grey = image.mode in ("1", "L", "LA")
    alpha = None
    if image.has_transparency_data:
        image = _converted(image, "LA" if is_grey else "RGBA")
        alpha = image.getchannel("A")
    colour = _profiled(image if image.mode == "CMYK" else _converted(image, "L" if is_grey else "RGB"))
    if alpha is not None:
        colour.putalpha(alpha)
    return colour


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its high byte, as Pillow reads 16-bit colour; its own conversion of grey clips at 255."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    grey.info["icc_profile"] = image.info.get("icc_profile")
    return grey


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The picture in this mode, without the copy that `convert` makes of one that has it."""
    return image if image.mode == mode else image.convert(mode)


def _profiled(image: Image.Image) -> Image.Image:
    """RGB by the embedded profile, if there is a usable one."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            assert converted is not None, "only an in-place conversion returns nothing"
            return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # the promise above: a profile that cannot be used is ignored
    return _converted(image, "RGB")
