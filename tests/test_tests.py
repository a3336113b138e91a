"""Every source file has a test of its own, or a test module that says in its first line that it covers it.

A test of its own lies at the same path: server/kleinserve/rpc/status.py, tests/rpc/test_status.py;
client/kleinclient/files.py, tests/client/test_files.py. A module that covers others names them, in parentheses, by
their paths in their package, as in "Streams through a real server (app.py, web/{http,server}.py).": under
tests/client/ of the client's, elsewhere of the server's.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVER, CLIENT = ROOT / "server/kleinserve", ROOT / "client/kleinclient"
PACKAGES = {SERVER: ROOT / "tests", CLIENT: ROOT / "tests/client"}

NOTHING_TO_TEST = {  # of the server
    "backend/backend.py": "a protocol, its state and its load",
    "core/caller.py": "fields alone",
    "core/demand.py": "fields alone",
    "core/events.py": "fields alone",
    "core/limits.py": "numbers of the contract; what enforces them is tested with them",
    "core/usage.py": "fields alone",
    "scheduler/engine.py": "a protocol",
}


def sources(package: Path) -> set[str]:
    """The package's files that are to be tested, by their paths in it."""
    paths = {path.relative_to(package) for path in package.rglob("*.py")}
    own = {path for path in paths if path.name != "__init__.py" and "migrations" not in path.parts}
    return {str(path) for path in own}


def mirrored(package: Path) -> set[str]:
    """Those whose test lies at the same path."""

    def has_own(source: str) -> bool:
        own = PACKAGES[package] / source
        return own.with_name(f"test_{own.stem.strip('_')}.py").exists()

    return set(filter(has_own, sources(package)))


def named(line: str) -> set[str]:
    """The files that a first line names in its parentheses; `a/{b,c}.py` are a/b.py and a/c.py."""
    files: set[str] = set()
    for inside in re.findall(r"\(([^()]*\.py)\)", line):
        for before, stems, after in re.findall(r"([^\s,{]*)(?:\{([^}]*)\})?([^\s,]*\.py)", inside):
            files |= {f"{before}{stem}{after}" for stem in stems.split(",")}
    return files


def covered(package: Path) -> dict[str, str]:
    """What the package's test modules name in their first lines, and where."""
    found = {}
    for module in (ROOT / "tests").rglob("test_*.py"):
        is_client = PACKAGES[CLIENT] in module.parents
        if is_client == (package == CLIENT):
            first = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n")[0]
            found |= dict.fromkeys(named(first), str(module.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_source_file_has_a_test(package: Path) -> None:
    """One that is added without a test, and without a module that names it, is found here."""
    excused = set(NOTHING_TO_TEST) if package == SERVER else set()
    untested = sources(package) - mirrored(package) - set(covered(package)) - excused
    assert untested == set(), f"without a test: {sorted(untested)}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_what_is_named_is_there(package: Path) -> None:
    """A file that has moved or gone is no longer named, and one with a test of its own is not excused."""
    assert {file: module for file, module in covered(package).items() if file not in sources(package)} == {}
    if package == SERVER:
        assert set(NOTHING_TO_TEST) <= sources(package) - mirrored(package)


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("Streams (app.py).", {"app.py"}),
        ("Streams (as they are) of a server (app.py, web/http.py).", {"app.py", "web/http.py"}),
        ("Pages (web/{http,server}.py, app.py).", {"web/http.py", "web/server.py", "app.py"}),
        ("Of app.py; what else: test_stream.py.", set()),
    ],
)
def test_how_a_first_line_names_files(line: str, files: set[str]) -> None:
    """In parentheses; a file that is only spoken of is not covered."""
    assert named(line) == files
