"""The log is kept, not written, as in the scheduler's tests."""

from tests.scheduler.conftest import kept_log as kept_log
