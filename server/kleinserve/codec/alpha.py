"""Straight alpha: what a transparent pixel's colour is, and what it looks like on white."""

from PIL import Image

IS_VISIBLE = [0] + [255] * 255  # a table over alpha: anything above 0


def cleared(image: Image.Image) -> Image.Image:
    """The RGBA picture with colour 0 wherever alpha is 0."""
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] != 0:
        return image
    clear = Image.new("RGBA", image.size, (0, 0, 0, 0))
    clear.paste(image, mask=alpha.point(IS_VISIBLE))
    return clear


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, its transparent parts over white."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white
