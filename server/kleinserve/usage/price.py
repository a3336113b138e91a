"""The price of an image, in whole millionths of a US dollar. No float and no rounding but that of megapixels."""

from collections.abc import Sequence
from dataclasses import dataclass

from kleinserve.config import Config
from kleinserve.core import Size, Usage


@dataclass(frozen=True)
class Price:
    """A price table, in microUSD a megapixel; `version` says which one a record was priced by."""

    first_output_megapixel_microusd: int
    further_output_megapixel_microusd: int
    reference_megapixel_microusd: int
    version: str


def configured(config: Config) -> Price:
    """The price that the settings give."""
    return Price(
        config.price_first_output_megapixel_microusd,
        config.price_further_output_megapixel_microusd,
        config.price_reference_megapixel_microusd,
        config.price_version,
    )


def usage(size: Size, reference_sizes: Sequence[Size], price: Price, *, billable: bool) -> Usage:
    """What an image of this size uses and costs; `reference_sizes` are those that the model sees, counted one by one.

    `billable` False: an estimate, or an image that nobody pays for; its cost is what it would be.
    """
    output, reference = size.megapixels, sum(each.megapixels for each in reference_sizes)
    cost = (
        price.first_output_megapixel_microusd
        + (output - 1) * price.further_output_megapixel_microusd
        + reference * price.reference_megapixel_microusd
    )
    return Usage(size.pixels, output, reference, cost, billable, price.version)
