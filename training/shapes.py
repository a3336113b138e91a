"""The outlines that can be drawn, as one atlas of signed distances. Knows no colours and no places."""

from functools import cache

import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "heart", "cross")
GLYPHS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
OUTLINES = SHAPES + GLYPHS
ATLAS_PX = 160
ATLAS_REACH = 1.6  # the atlas covers [-1.6, 1.6] in units of the shape's own radius


def _turn(count: int, start: float = -np.pi / 2) -> np.ndarray:
    return start + np.arange(count) * 2 * np.pi / count


def _polygon(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], -1)


def _heart() -> np.ndarray:
    t = _turn(96, 0.0)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16.5, -(y + 2.5) / 16.5], -1)


def _cross(arm: float = 0.34) -> np.ndarray:
    a, b = arm, 0.98
    return np.array(
        [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    )


def _glyph(character: str) -> list[np.ndarray]:
    path = TextPath((0, 0), character, size=100, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    contours = [np.asarray(p)[:-1] * (1, -1) for p in path.to_polygons()]
    points = np.concatenate(contours)
    low, high = points.min(0), points.max(0)
    return [(c - (low + high) / 2) * 2 / (high - low)[1] * 0.95 for c in contours]


def contours(outline: str) -> list[np.ndarray]:
    """The closed polygons of an outline, y down, inside the square [-1, 1]; an inner polygon is a hole."""
    if outline in GLYPHS:
        return _glyph(outline)
    even = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
    circle = _polygon(_turn(96), 0.98)
    return {
        "circle": [circle],
        "square": [_polygon(_turn(4, np.pi / 4), 0.86 * 2**0.5)],
        "triangle": [np.array([(0, -0.95), (1.05, 0.85), (-1.05, 0.85)])],
        "star": [_polygon(_turn(10), even) + np.array((0, 0.05))],
        "ring": [circle, circle * 0.58],
        "diamond": [np.array([(0, -1.05), (0.74, 0), (0, 1.05), (-0.74, 0)])],
        "heart": [_heart()],
        "cross": [_cross()],
    }[outline]


def _distance(polygons: list[np.ndarray]) -> np.ndarray:
    axis = ((np.arange(ATLAS_PX) + 0.5) / ATLAS_PX * 2 - 1) * ATLAS_REACH
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2)
    nearest, inside = np.full(len(points), np.inf), np.zeros(len(points), bool)
    for polygon in polygons:
        a, b = polygon[None], np.roll(polygon, -1, 0)[None]
        edge, offset = b - a, points - a
        along = np.clip((offset * edge).sum(-1) / np.maximum((edge**2).sum(-1), 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.sqrt(((offset - along[..., None] * edge) ** 2).sum(-1)).min(1))
        spans = (a[..., 1] > points[..., 1]) != (b[..., 1] > points[..., 1])
        crossing = a[..., 0] + (points[..., 1] - a[..., 1]) * edge[..., 0] / np.where(
            edge[..., 1] == 0, 1e-12, edge[..., 1]
        )
        inside ^= ((spans & (points[..., 0] < crossing)).sum(1) % 2).astype(bool)
    return np.where(inside, -nearest, nearest).reshape(ATLAS_PX, ATLAS_PX)


@cache
def atlas() -> torch.Tensor:
    """Signed distances [outlines, 1, ATLAS_PX, ATLAS_PX], negative inside, in units of the shape's radius."""
    return torch.tensor(np.stack([_distance(contours(o)) for o in OUTLINES]), dtype=torch.float32).unsqueeze(1)
