"""What a drawn picture shows, found without knowing what was asked: background, colours, outlines, places."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from training.scene import PALETTE, Thing, coverage, premultiplied
from training.shapes import ATLAS_PX, ATLAS_REACH, OUTLINES, atlas

VISIBLE = 0.12  # a thing fainter than this against its background is not seen
NEAR = 0.25  # how far from a palette colour still counts as that colour


@dataclass(frozen=True)
class Seen:
    """One thing as found: centre and radius as in Thing, and the overlap with its outline."""

    outline: str
    colour: str
    x: float
    y: float
    radius: float
    overlap: float


def named(rgb: torch.Tensor) -> str:
    """The palette's name for a colour, or "none" when no name is near."""
    distances = {name: float((rgb - torch.tensor(value)).norm()) for name, value in PALETTE.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < NEAR else "none"


def background(picture: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name ("transparent" included) and premultiplied RGBA of the frame of a straight-alpha [4, H, W] picture."""
    flat = premultiplied(picture.unsqueeze(0))[0]
    edge = max(1, min(flat.shape[1:]) // 64)
    frame = torch.cat(
        [
            flat[:, :edge].flatten(1),
            flat[:, -edge:].flatten(1),
            flat[:, :, :edge].flatten(1),
            flat[:, :, -edge:].flatten(1),
        ],
        1,
    )
    middle = frame.median(1).values
    return ("transparent" if middle[3] < 0.5 else named(middle[:3])), middle


def _outline_moments() -> tuple[torch.Tensor, torch.Tensor]:
    """Area and centroid of every outline at radius 1."""
    inside = (atlas()[:, 0] < 0).float()
    axis = ((torch.arange(ATLAS_PX) + 0.5) / ATLAS_PX * 2 - 1) * ATLAS_REACH
    area = inside.sum((1, 2)) * (2 * ATLAS_REACH / ATLAS_PX) ** 2
    total = inside.sum((1, 2))
    return area, torch.stack([(inside.sum(1) * axis).sum(1) / total, (inside.sum(2) * axis).sum(1) / total], 1)


def fit(mask: torch.Tensor, outlines: tuple[str, ...] = OUTLINES) -> list[tuple[float, Thing]]:
    """Every outline laid over the soft mask [H, W] by centroid and area, with its overlap, best first."""
    height, width = mask.shape
    areas, centroids = _outline_moments()
    total = mask.sum().clamp(min=1e-3)
    x = (mask.sum(0) * (torch.arange(width) + 0.5)).sum() / total
    y = (mask.sum(1) * (torch.arange(height) + 0.5)).sum() / total
    short = min(height, width)
    things = []
    for outline in outlines:
        index = OUTLINES.index(outline)
        radius = (total / areas[index]).sqrt()
        place = torch.stack([x, y]) - radius * centroids[index]
        things.append(
            Thing(outline, (0, 0, 0), float(place[0]) / width, float(place[1]) / height, float(radius) / short)
        )
    covers = coverage(things, width, height)[:, 0]
    overlaps = torch.minimum(covers, mask).sum((1, 2)) / torch.maximum(covers, mask).sum((1, 2)).clamp(min=1e-3)
    return sorted(zip(overlaps.tolist(), things, strict=True), key=lambda pair: -pair[0])


def see(picture: torch.Tensor, region: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Seen | None:
    """The thing in a region (left, top, right, bottom as fractions), or nothing if all is background."""
    height, width = picture.shape[1:]
    left, top, right, bottom = (round(f * s) for f, s in zip(region, (width, height, width, height), strict=True))
    flat = premultiplied(picture.unsqueeze(0))[0]
    _, back = background(picture)
    part = flat[:, top:bottom, left:right]
    distance = (part - back.view(-1, 1, 1)).norm(dim=0)
    strongest = distance.flatten().quantile(0.99)
    if strongest < VISIBLE:
        return None
    core = part[:, distance > 0.85 * strongest].median(1).values
    mask = functional.adaptive_avg_pool2d(distance.unsqueeze(0) / strongest, _small(part.shape[1:]))[0].clamp(0, 1)
    mask = ((mask - 0.15) / 0.7).clamp(0, 1)
    overlap, thing = fit(mask)[0]
    short = min(bottom - top, right - left)
    return Seen(
        thing.outline,
        named(core[:3] / core[3].clamp(min=0.05)),
        (left + thing.x * (right - left)) / width,
        (top + thing.y * (bottom - top)) / height,
        thing.radius * short / min(height, width),
        overlap,
    )


def _small(shape: torch.Size, limit_px: int = 96) -> tuple[int, int]:
    scale = min(1.0, limit_px / max(shape))
    return round(shape[0] * scale), round(shape[1] * scale)


def alpha_overlap(picture: torch.Tensor, wanted: torch.Tensor) -> float:
    """Intersection over union of two alpha planes, cut at one half."""
    a, b = picture > 0.5, wanted > 0.5
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
