"""Where the tests' own programs come from: debian.py beside this file."""

from pathlib import Path

import pytest

from tests import debian


def test_a_program_that_is_there(tmp_path: Path) -> None:
    """Nothing is fetched for it."""
    assert debian.program("sh", "dash", tmp_path) == "/usr/bin/sh"
    assert not list(tmp_path.iterdir())


def test_a_program_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without it and without apt-get a test fails by one line that names the package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"^no prometheus: apt-get install prometheus \(.*apt-get.*\)$"):
        debian.program("prometheus", "prometheus", tmp_path / "cache")


def test_an_unpacked_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was unpacked before is used again."""
    unpacked = tmp_path / "prometheus" / "usr" / "bin" / "promtool"
    unpacked.parent.mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    assert debian.program("promtool", "prometheus", tmp_path) == str(unpacked)
