"""What a picture contains, and the picture itself. Knows no words."""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from training.shapes import ATLAS_REACH, OUTLINES, atlas

Rgb = tuple[float, float, float]

PALETTE: dict[str, Rgb] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.12, 0.63, 0.20),
    "blue": (0.12, 0.27, 0.86),
    "yellow": (0.98, 0.86, 0.12),
    "orange": (1.00, 0.51, 0.04),
    "purple": (0.51, 0.16, 0.71),
    "pink": (1.00, 0.55, 0.75),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "cyan": (0.16, 0.82, 0.90),
    "brown": (0.47, 0.27, 0.12),
}
COLOURS = tuple(PALETTE)
MARGIN = 0.03  # of the shorter side; no shape comes nearer to the edge
SIZES = {"small": 0.15, "medium": 0.23, "large": 0.33}  # radius, of the shorter side


@dataclass(frozen=True)
class Thing:
    """One shape: centre as a fraction of width and height, radius as a fraction of the shorter side."""

    outline: str
    rgb: Rgb
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Things from back to front on a background; no background means transparent."""

    things: tuple[Thing, ...]
    background: Rgb | None
    width_px: int
    height_px: int


def fitted(thing: Thing, width_px: int, height_px: int) -> Thing:
    """The same thing moved and, if it must be, shrunk until it lies inside the margins."""
    short = min(width_px, height_px)
    radius = min(thing.radius, 0.5 - MARGIN)
    reach_x, reach_y = (radius + MARGIN) * short / width_px, (radius + MARGIN) * short / height_px
    return replace(
        thing,
        radius=radius,
        x=min(max(thing.x, reach_x), 1 - reach_x),
        y=min(max(thing.y, reach_y), 1 - reach_y),
    )


def coverage(things: list[Thing | None], width_px: int, height_px: int) -> torch.Tensor:
    """Share of each pixel that each thing covers: [B, 1, H, W], anti-aliased over one pixel."""
    short = min(width_px, height_px)
    known = [t or Thing("circle", (0, 0, 0), 9.0, 9.0, 0.1) for t in things]
    place = torch.tensor([[t.x * width_px, t.y * height_px, t.radius * short] for t in known])
    x = (torch.arange(width_px) + 0.5).view(1, 1, -1) - place[:, 0].view(-1, 1, 1)
    y = (torch.arange(height_px) + 0.5).view(1, -1, 1) - place[:, 1].view(-1, 1, 1)
    radius_px = place[:, 2].view(-1, 1, 1)
    grid = torch.stack(torch.broadcast_tensors(x / radius_px, y / radius_px), -1) / ATLAS_REACH
    fields = atlas()[torch.tensor([OUTLINES.index(t.outline) for t in known])]
    distance = functional.grid_sample(fields, grid, padding_mode="border", align_corners=False)
    return (0.5 - distance * radius_px.unsqueeze(1)).clamp(0, 1)


def render(scenes: list[Scene]) -> torch.Tensor:
    """Straight-alpha RGBA [B, 4, H, W] in 0..1; all scenes of one size. Colour is 0 where alpha is 0."""
    width_px, height_px = scenes[0].width_px, scenes[0].height_px
    back = torch.tensor([(*s.background, 1.0) if s.background else (0.0,) * 4 for s in scenes])
    picture = back.view(-1, 4, 1, 1).expand(-1, -1, height_px, width_px)
    for layer in range(max(len(s.things) for s in scenes)):
        things = [s.things[layer] if layer < len(s.things) else None for s in scenes]
        cover = coverage(things, width_px, height_px)
        paint = torch.tensor([(*(t.rgb if t else (0.0,) * 3), 1.0) for t in things]).view(-1, 4, 1, 1)
        picture = picture * (1 - cover) + paint * cover  # premultiplied "over"
    alpha = picture[:, 3:]
    return torch.cat([picture[:, :3] / alpha.clamp(min=1e-4) * (alpha > 0), alpha], 1).clamp(0, 1)


def premultiplied(rgba: torch.Tensor) -> torch.Tensor:
    """Colour times alpha, and alpha: the form in which two pictures may be compared."""
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
