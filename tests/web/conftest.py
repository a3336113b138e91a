"""Real servers with a web port, each in a process of its own."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Serving, launched

TOKEN = "of-the-caller-web"


@dataclass(frozen=True)
class Web(Serving):
    """A server that has a web port too, at this base address."""

    base: str = ""


@contextmanager
def web_served(folder: Path, *arguments: str, module: str = "kleinserve", **environment: str) -> Iterator[Web]:
    """A warm server, its ledger in `folder`; ended by SIGTERM, with exit code 0 unless the test ended it."""
    settings = {"KLEINSERVE_LEDGER": f"sqlite:///{folder}/usage.db", "KLEINSERVE_WEB_PORT": "0", **environment}
    with launched(*arguments, module=module, **settings) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        serving = re.match(r"serving on (\S+), metrics on (\S+)$", next(lines))
        web = re.match(r"web on (\S+)$", next(lines))
        assert serving is not None
        assert web is not None
        yield Web(serving[1], serving[2], process, base=f"http://{web[1]}")
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 0


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A server where everyone is anonymous, and where small requests share steps however fast the machine is.

    Its pictures are real ones, but for prompts of tests/e2e/faults.py.
    """
    folder = tmp_path_factory.mktemp("web")
    with web_served(folder, module="tests.e2e.faults", KLEINSERVE_STEP_TOKENS_MAX="8192") as server:
        yield server


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A server whose one caller, with the token TOKEN, may have 2 megapixels a minute."""
    folder = tmp_path_factory.mktemp("limited")
    callers = folder / "callers.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    callers.write_text(f'[callers.web]\ntoken_sha256 = ["{digest}"]\nmegapixels_per_minute = 2\n')
    with web_served(folder, "--callers", str(callers)) as server:
        yield server
