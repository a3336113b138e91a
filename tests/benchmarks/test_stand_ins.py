"""benchmarks/stand_ins.py: what stands in for a missing package takes every call that the server makes of it."""

import json
import logging

import pytest

from benchmarks.stand_ins import Log


@pytest.mark.parametrize("level", ["info", "warning", "error", "exception", "critical"])
def test_log_by_name(level: str, capfd: pytest.CaptureFixture[str]) -> None:
    getattr(Log(), level)("found", size=3)
    assert json.loads(capfd.readouterr().err) == {"level": level, "event": "found", "size": 3}


def test_log_by_number(capfd: pytest.CaptureFixture[str]) -> None:
    """As what libraries log through Python's `logging` is passed on."""
    error = ValueError("why")
    Log().log(logging.WARNING, "found", logger="library", exc_info=(ValueError, error, None))
    told, traceback = capfd.readouterr().err.split("\n", 1)
    assert json.loads(told) == {"level": "warning", "event": "found", "logger": "library"}
    assert traceback == "ValueError: why\n"
