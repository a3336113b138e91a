"""What one request asks of a model's stages: the unit in which work is predicted and shared out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What one request asks of the stages.

    `work`: GFLOP of one of its steps; `tokens`: what it adds to a step; `passes`: those that are not decoded yet.
    """

    work: float
    tokens: int
    output_megapixels: float
    reference_megapixels: float
    passes: int = 1
