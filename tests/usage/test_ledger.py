"""`--ledger none`: nothing is written, nothing is refused for it, and nothing can be read."""

import pytest
from kleinserve.errors import NotImplementedHere
from kleinserve.usage.ledger import NoLedger

from tests.usage.some import record


async def test_without_a_ledger_images_are_made_and_usage_is_not_told() -> None:
    """It is up, takes every record, and answers NOT_IMPLEMENTED to whoever reads."""
    ledger = NoLedger()
    assert ledger.is_up
    await ledger.commit(record())
    ledger.note(record())
    with pytest.raises(NotImplementedHere, match="--ledger none"):
        await ledger.totals(0, 1, None)
    with pytest.raises(NotImplementedHere, match="--ledger none"):
        await anext(ledger.records(0, 1, None, ""))
    await ledger.close()
