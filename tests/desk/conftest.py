"""A desk for each test, and the ledger's databases. The log is kept, not written, as in the scheduler's tests."""

import pytest

from tests.desk.stage import Stage
from tests.scheduler.conftest import kept_log as kept_log
from tests.usage.conftest import postgres as postgres
from tests.usage.conftest import url as url


@pytest.fixture
async def stage() -> Stage:
    return Stage()
