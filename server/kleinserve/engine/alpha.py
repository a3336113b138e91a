"""Alpha: cut a subject out of a 3-channel picture. Pure functions on pictures.

Pictures are float32 NumPy arrays [H, W, channels] in 0..1. Cut-outs are straight (not premultiplied) RGBA.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kleinserve.core import AlphaMethod, Pixels, Size

Picture = NDArray[np.float32]
Levels = NDArray[np.uint8]

ON_WHITE = ", isolated on a plain pure white background"
TO_BLACK = "Change the background to plain pure black. Keep everything else exactly as it is."

_TRANSPARENT = 0.5  # below this alpha a pixel counts as background
_BACKGROUND_SHARE_MIN = 0.01  # a cut-out with less background than this found none
_DRIFT_MAX = 0.08  # disagreement of the channels, as a share of the subject, above which it moved
_KEY_NEAR, _KEY_FAR = 0.06, 0.22  # colour distance (root mean square) from background to subject
_BORDER_SHARE_MIN = 0.6  # share of the border that must have the background's colour


def has_background(alpha: Picture) -> bool:
    """Whether enough of the picture is transparent to be called cut out."""
    return bool((alpha < _TRANSPARENT).mean() >= _BACKGROUND_SHARE_MIN)


def difference(on_white: Picture, on_black: Picture) -> Picture | None:
    """RGBA from the same subject on white and on black, or None where the two do not align or show no background.

    alpha = 1 − mean(W − B), colour = B / alpha. Where the subject is the same in both, W − B is the same grey in all
    channels; how far the channels disagree measures the drift.
    """
    gap = on_white[..., :3] - on_black[..., :3]
    grey = gap.mean(axis=-1)
    alpha = np.clip(1 - grey, 0, 1)
    disagreement = np.abs(gap - grey[..., None]).max(axis=-1) + np.maximum(-grey, 0)
    drift = disagreement.sum() / max(float(alpha.sum()), 1.0)  # a share of the subject, not of the picture
    if drift > _DRIFT_MAX or not has_background(alpha):
        return None
    colour = np.clip(on_black[..., :3] / np.maximum(alpha, 1e-3)[..., None], 0, 1)
    return np.dstack([colour, alpha]).astype(np.float32)


def key(picture: Picture) -> Picture | None:
    """RGBA by the border's colour, or None where the border has no one colour.

    Floods from the border through what is near the background's colour, so holes inside the subject stay; alpha rises
    with the distance from that colour at the flood's edge, and the background's share of a half-covered pixel's
    colour is taken out (spill).
    """
    rgb = picture[..., :3]
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    background = np.median(border, axis=0)
    if (_distance(border, background) < _KEY_NEAR).mean() < _BORDER_SHARE_MIN:
        return None
    distance = _distance(rgb, background)
    near = distance < _KEY_NEAR
    edge = np.zeros_like(near)
    edge[0], edge[-1], edge[:, 0], edge[:, -1] = near[0], near[-1], near[:, 0], near[:, -1]
    flooded = ndimage.binary_propagation(edge, mask=near)
    rim = ndimage.binary_dilation(flooded, iterations=2)
    soft = np.clip((distance - _KEY_NEAR) / (_KEY_FAR - _KEY_NEAR), 0, 1)
    alpha = np.where(flooded, 0.0, np.where(rim, soft, 1.0))
    if not has_background(alpha):
        return None
    colour = (rgb - (1 - alpha[..., None]) * background) / np.maximum(alpha, 1e-3)[..., None]
    return np.dstack([np.clip(colour, 0, 1), alpha]).astype(np.float32)


def _distance(colours: Picture, colour: Picture) -> Picture:
    return np.asarray(np.sqrt(((colours - colour) ** 2).mean(axis=-1)), dtype=np.float32)


def cut_out(picture: NDArray[Any], on_white: Picture | None) -> tuple[Levels | None, AlphaMethod]:
    """RGBA of a native picture in 8 bits, or of one on black and the same `on_white`; None: no background was found."""
    if on_white is None:
        opacity: Picture = picture[..., 3].astype(np.float32) / np.float32(255)
        return (picture if has_background(opacity) else None), AlphaMethod.NATIVE
    found, method = difference(on_white, picture), AlphaMethod.DIFFERENCE
    if found is None:
        found, method = key(on_white), AlphaMethod.KEY
    return (None if found is None else quantise(found)), method


def quantise(picture: Picture) -> Levels:
    """0..1 -> 8 bits, rounded half to even; colour 0 where alpha is 0. For opaque pictures see pixels.quantise."""
    array = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    if array.shape[-1] == 4:
        array[array[..., 3] == 0] = 0
    return array


def pixels(levels: Levels) -> Pixels:
    height, width, channels = levels.shape
    return Pixels(Size(width, height), channels, levels.tobytes())
