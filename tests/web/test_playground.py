"""The playground in headless Chromium, against real servers: what browser/tasks.mjs does there."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from kleinserve.web import playground

from clients.interop import install
from clients.languages import LANGUAGES, ROOT
from tests.web.conftest import TOKEN, Web

TASKS = Path(__file__).parent / "browser" / "tasks.mjs"
FOLDER = Path(playground.__file__).parent
SECONDS = 1200
NAMES, NAMES_WITH_TOKEN = (
    re.findall(r"^  async (\w+)\(\) \{$", TASKS.read_text().split(f"const {name} =")[1].split("\n};")[0], re.MULTILINE)
    for name in ("tasks", "withToken")
)


@pytest.fixture(scope="session")
def browser() -> None:
    """Chromium, Node and playwright-core: installed where they are missing."""
    install([language for language in LANGUAGES if language.is_browser])


def done(*arguments: str) -> dict[str, str]:
    """What each task came to, by its name."""
    ran = subprocess.run(["node", str(TASKS), *arguments], capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr
    return dict(line.split(" ", 1) for line in ran.stdout.splitlines())


@pytest.fixture(scope="module")
def outcomes(browser: None, web: Web) -> dict[str, str]:
    return done(web.base, web.metrics)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_person_can(outcomes: dict[str, str], name: str) -> None:
    """Each task of tasks.mjs succeeds, without an error on the browser's console."""
    assert outcomes[name] == "ok"


@pytest.mark.timeout(SECONDS)
def test_a_person_with_a_token_can(browser: None, limited: Web) -> None:
    """Where there are callers the page asks for a token, uses it, and forgets it when it is loaded again.

    Over plain HTTP from another name than localhost, where pages have no clipboard, requests are copied all the same.
    """
    assert done(limited.base, limited.metrics, TOKEN) == dict.fromkeys(NAMES_WITH_TOKEN, "ok")


@pytest.mark.parametrize(
    "path", ["", "app.js", "errors.js", "image.js", "klein.js", "snippets.js", "style.css", "icon.svg"]
)
def test_the_page_is_locked_down(web: Web, path: str) -> None:
    """Every file of the page says what it is, and that nothing of elsewhere may run, load or frame it."""
    answer = httpx.get(f"{web.base}/{path}", trust_env=False)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_module_is_what_its_source_makes(browser: None) -> None:
    """playground/klein.js is built from clients/browser/klein.ts and the protos as they stand."""
    checked = subprocess.run(
        [sys.executable, "-m", "clients.module", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
