"""A desk for each test. The log is kept, not written, as in the scheduler's tests."""

import pytest

from tests.desk.stage import Stage
from tests.scheduler.conftest import kept_log as kept_log


@pytest.fixture
async def stage() -> Stage:
    return Stage()
