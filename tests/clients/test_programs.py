"""The programs of clients/ and docs/CLIENTS.md are in step with the contract. `make interop` runs them."""

import subprocess
from pathlib import Path

import pytest

from clients import interop
from clients.languages import BUILD, LANGUAGES, ROOT, Language, page_program
from tests.clients.names import contract, used

BY_NAME = {language.name: language for language in LANGUAGES}
PROGRAMS = [
    ("go", "main.go"),
    ("node", "main.ts"),
    ("browser", "klein.ts"),
    ("browser", "tasks.ts"),
    ("java", "Main.java"),
    ("cpp", "main.cc"),
    ("ruby", "main.rb"),
]
# What a change of the contract would leave behind in each program: a name as it is, and as it would no longer be.
STALE = [
    ("go", "main.go", "GetSizeBytes", "GetByteCount", "bytecount"),
    ("go", "main.go", "Width: 128", "Breadth: 128", "breadth"),
    ("node", "main.ts", "header.sizeBytes", "header.byteCount", "bytecount"),
    ("node", "main.ts", "width: 128", "breadth: 128", "breadth"),
    ("browser", "klein.ts", "event.value.sizeBytes", "event.value.byteCount", "bytecount"),
    ("browser", "tasks.ts", "images.edit(", "images.change(", "change"),
    ("java", "Main.java", "setWidth", "setBreadth", "breadth"),
    ("java", "Main.java", "header.getSizeBytes", "header.getByteCount", "bytecount"),
    ("cpp", "main.cc", "set_width", "set_breadth", "breadth"),
    ("cpp", "main.cc", "header.size_bytes()", "header.byte_count()", "bytecount"),
    ("ruby", "main.rb", "width: 128", "breadth: 128", "breadth"),
    ("ruby", "main.rb", "header.size_bytes", "header.byte_count", "bytecount"),
]


def _source(name: str, file: str) -> str:
    return (ROOT / "clients" / name / file).read_text()


@pytest.mark.parametrize(("name", "file"), PROGRAMS)
def test_a_program_uses_names_of_the_contract(name: str, file: str) -> None:
    """Every field, message and RPC that a program names is in the contract."""
    assert used(name, _source(name, file)) - contract() == set()


@pytest.mark.parametrize("name", BY_NAME)
def test_the_page_uses_names_of_the_contract(name: str) -> None:
    """So is what each program of docs/CLIENTS.md names, and it streams previews."""
    names = used(name, page_program(name, BY_NAME[name].fence))
    assert names - contract() == set()
    assert {"generate", "preview"} <= names or {"generaterequest", "preview"} <= names


@pytest.mark.parametrize(("name", "file", "text", "stale", "seen"), STALE)
def test_a_stale_name_is_seen(name: str, file: str, text: str, stale: str, seen: str) -> None:
    """A field or RPC that the contract does not have is reported, in every language."""
    source = _source(name, file)
    assert text in source
    assert used(name, source.replace(text, stale)) - contract() == {seen}


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_every_program_does_every_task(language: Language) -> None:
    """Each language's program has all nine tasks by the names that the table shows."""
    words = language.main.source.read_text()
    assert [task for task in interop.TASKS if task not in words and task != "smallest"] == []


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_programs_compile(language: Language) -> None:
    """Both programs of a language compile against stubs made now, where its toolchain is installed, as npm is here."""
    if language.uses_npm:
        interop.install([language])
    if missing := language.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    interop.generate([language])
    for program in (language.main, language.smallest):
        command = language.check(program)
        done = subprocess.run(command, cwd=ROOT, env=language.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("line", "code"), [("ok 4 previews", 0), ("FAILED not as expected: 3 previews", 1), (None, 1)])
def test_one_red_task_fails_the_whole(line: str | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The table's exit code is 0 if every task is told as ok; one that failed or is not told is named below it."""
    tasks = dict.fromkeys(interop.TASKS, "ok")
    tasks |= {"generate": line} if line else {}
    if line is None:
        del tasks["generate"]
    assert interop.report([BY_NAME["go"]], [interop.Outcome("go 1", tasks)], has_metrics=True) == code
    said = capsys.readouterr().out
    assert f"go: generate: {line or 'not told'}" in said if code else "FAILED" not in said


def test_a_hanging_program_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end is stopped, and what it had said is kept."""
    monkeypatch.setattr(interop, "RUN_SECONDS", 1)
    assert interop.call(["sh", "-c", "echo health ok; exec sleep 60"]) == "health ok\n\nhung for 1 s"


def test_the_lock_file_names_no_registry() -> None:
    """package-lock.json holds hashes, and no address of a registry."""
    lock = (ROOT / "clients" / "package-lock.json").read_text()
    assert '"integrity"' in lock
    assert '"resolved"' not in lock


def test_builds_stay_out_of_the_repository() -> None:
    """What is generated and built lies in one folder that git ignores."""
    ignored = subprocess.run(["git", "check-ignore", "-q", BUILD / "gen" / Path("any")], cwd=ROOT)
    assert ignored.returncode == 0
