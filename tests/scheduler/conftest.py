"""The log is kept, not written: a defect made on purpose is no news, and writing its stack takes seconds."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def kept_log() -> Iterator[None]:
    with capture_logs():
        yield
