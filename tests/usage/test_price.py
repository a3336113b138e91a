"""Images cost what the contract says, in integers, at every boundary."""

import pytest
from kleinserve.config import load
from kleinserve.core import Size, Usage
from kleinserve.usage.price import Price, configured, usage

PRICE = Price(14_000, 1_000, 0, "2026-01")

OUTPUTS = [  # size, megapixels, microUSD
    (Size(64, 64), 1, 14_000),
    (Size(1024, 1024), 1, 14_000),  # 1,048,576: exactly one
    (Size(1_048_577, 1), 2, 15_000),  # and one pixel more
    (Size(1024, 1040), 2, 15_000),
    (Size(2048, 1024), 2, 15_000),
    (Size(2048, 1040), 3, 16_000),
    (Size(8192, 384), 3, 16_000),
    (Size(8192, 400), 4, 17_000),
    (Size(2048, 2048), 4, 17_000),  # 4,194,304: the largest
]


@pytest.mark.parametrize(("size", "megapixels", "cost"), OUTPUTS)
def test_every_started_megapixel_counts(size: Size, megapixels: int, cost: int) -> None:
    """The first output megapixel costs 14,000 µUSD and each further started one 1,000."""
    assert usage(size, [], PRICE, billable=True) == Usage(size.pixels, megapixels, 0, cost, True, "2026-01")


REFERENCES = [  # sizes as the model sees them, megapixels
    ([], 0),
    ([Size(64, 64)], 1),
    ([Size(64, 64)] * 4, 4),  # one by one: four small ones are four
    ([Size(1024, 1024)] * 4, 4),
    ([Size(1_048_577, 1), Size(64, 64)], 3),
]


@pytest.mark.parametrize(("sizes", "megapixels"), REFERENCES)
def test_references_are_counted_one_by_one(sizes: list[Size], megapixels: int) -> None:
    """Each reference is rounded up for itself; their price adds to that of the image, and is nothing by default."""
    priced = usage(Size(64, 64), sizes, Price(14_000, 1_000, 300, "x"), billable=True)
    assert (priced.reference_megapixels, priced.cost_microusd) == (megapixels, 14_000 + 300 * megapixels)
    assert usage(Size(64, 64), sizes, PRICE, billable=True).cost_microusd == 14_000


def test_an_estimate_is_not_billable() -> None:
    """What is not billable has the same facts and the same cost, and says that nobody pays it."""
    size, references = Size(2048, 2048), [Size(1024, 1024)]
    estimate = usage(size, references, PRICE, billable=False)
    assert not estimate.billable
    assert estimate.cost_microusd == usage(size, references, PRICE, billable=True).cost_microusd


def test_the_price_is_a_setting() -> None:
    """The default settings give the contract's price; other settings give theirs, with their version."""
    assert configured(load({})) == PRICE
    other = configured(load({"price_version": "gift", "price_first_output_megapixel_microusd": 0}))
    assert usage(Size(64, 64), [], other, billable=True).cost_microusd == 0
    assert other.version == "gift"
