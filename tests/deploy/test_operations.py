"""The page of operations is complete."""

import re

from kleinserve.config import Config

from tests.deploy.prometheus import DEPLOY

PAGE = (DEPLOY.parent / "docs/OPERATIONS.md").read_text()


def test_settings() -> None:
    """Its table has every setting of the server once, and no other."""
    table = PAGE[PAGE.index("## Settings") :]
    named = [name for line in table.splitlines() if line.startswith("| ") for name in re.findall(r"`(\w+)`", line)]
    assert sorted(named) == sorted(Config.model_fields)


def test_tests() -> None:
    """Every test file that it names in brackets exists."""
    files = {path.stem for path in (DEPLOY.parent / "tests").rglob("test_*.py")}
    named = set(re.findall(r"test_\w+", " ".join(re.findall(r"\[(test_[^\]]*)\]", PAGE))))
    assert named - files == set()
