"""identity/reload.py: files that are read again when they change, by real files and a real event loop."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kleinserve.errors import BadConfig
from kleinserve.identity.reload import Read, Reloads, Watched
from structlog.testing import capture_logs

NEVER = 3600.0  # seconds


def upper(file: Path) -> Watched[str]:
    """A watch over a file of letters; anything else cannot be used."""

    def load(read: Read) -> str:
        text = read(file).decode()
        if not text.isalpha():
            raise BadConfig(f"{file}: not letters")
        return text.upper()

    return Watched("callers", load)


def put(file: Path, content: str | bytes) -> None:
    """Exchange the file's content, as one should: by a rename."""
    new = file.with_suffix(".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(new, file)


@asynccontextmanager
async def running(watched: Watched[str], seconds: float) -> AsyncIterator[tuple[Reloads, asyncio.Queue[str]]]:
    """The watch at work, and a queue of what it tells."""
    told: asyncio.Queue[str] = asyncio.Queue()
    reloads = Reloads([watched], lambda what, outcome: told.put_nowait(f"{what} {outcome}"), seconds)
    task = asyncio.create_task(reloads.run())
    try:
        yield reloads, told
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("one")
    return tmp_path / "file"


def test_start(file: Path) -> None:
    """A content that cannot be used, or none, or a pipe, ends the start with one line."""
    assert upper(file).value == "ONE"
    file.write_text("1")
    with pytest.raises(BadConfig, match="not letters"):
        upper(file)
    with pytest.raises(BadConfig, match=r"cannot read .*: No such file"):
        upper(file.parent / "none")
    os.mkfifo(file.parent / "pipe")
    with pytest.raises(BadConfig, match=r"cannot read .*: No such file"):
        upper(file.parent / "pipe")


def test_rename(file: Path) -> None:
    """A file that another is renamed over is loaded again, also when the new one has the old one's times."""
    watched = upper(file)
    (file.parent / "new").write_text("two")
    times = file.stat()
    os.utime(file.parent / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(file.parent / "new", file)
    assert watched.reload()
    assert watched.value == "TWO"


def test_kubernetes(tmp_path: Path) -> None:
    """A mounted secret, whose directory is exchanged by turning the link `..data`, is loaded again."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "file").symlink_to("..data/file")
    watched = upper(tmp_path / "file")
    (tmp_path / "..data_tmp").symlink_to("two")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    assert watched.reload()
    assert watched.value == "TWO"


def test_same_content(file: Path) -> None:
    """What was written again unchanged is no reload."""
    watched = upper(file)
    os.utime(file)
    assert not watched.reload()
    file.write_text("one")
    assert not watched.reload()


@pytest.mark.parametrize("bad", ["2", None, b"\xff"])
def test_bad_content(file: Path, bad: str | bytes | None) -> None:
    """A bad content, or a missing file, is refused once and the old value stays, until it is good again."""
    watched = upper(file)
    if bad is None:
        file.unlink()
    else:
        put(file, bad)
    with pytest.raises((BadConfig, UnicodeDecodeError)):
        watched.reload()
    assert not watched.reload()
    assert watched.value == "ONE"
    file.write_text("three")
    assert watched.reload()
    assert watched.value == "THREE"


def test_back_to_the_old(file: Path) -> None:
    """A bad content that is taken back is a reload too: what is served is what the file says."""
    watched = upper(file)
    file.write_text("2")
    with pytest.raises(BadConfig):
        watched.reload()
    file.write_text("one")
    assert watched.reload()
    assert watched.value == "ONE"


async def test_told(file: Path) -> None:
    """`check_now` loads a change at once, however long the pause between looks; the log says what was reloaded."""
    watched = upper(file)
    with capture_logs() as lines:
        async with running(watched, NEVER) as (reloads, told):
            put(file, "two")
            reloads.check_now()
            assert await told.get() == "callers ok"
            assert watched.value == "TWO"
    assert lines == [{"event": "reloaded", "what": "callers", "log_level": "info"}]


async def test_found(file: Path) -> None:
    """A change is found by looking, without being told."""
    async with running(upper(file), 0.01) as (_, told):
        put(file, "two")
        assert await told.get() == "callers ok"


async def test_refused(file: Path) -> None:
    """A refusal is told and logged once with its reason, and the watch goes on."""
    with capture_logs() as lines:
        async with running(upper(file), 0.01) as (_, told):
            put(file, "2")
            assert await told.get() == "callers refused"
            put(file, "three")
            assert await told.get() == "callers ok"
    assert [line["event"] for line in lines] == ["reload refused, the old one stays", "reloaded"]
    assert lines[0]["why"] == f"{file}: not letters"


async def test_unforeseen(file: Path) -> None:
    """An error that nobody foresaw is a refusal whose text is not logged, and does not end the watch."""
    with capture_logs() as lines:
        async with running(upper(file), 0.01) as (_, told):
            put(file, b"s3cret\xff")
            assert await told.get() == "callers refused"
            put(file, "three")
            assert await told.get() == "callers ok"
    assert lines[0]["why"] == "UnicodeDecodeError"
    assert "s3cret" not in str(lines)


async def test_the_loop_is_free(file: Path) -> None:
    """While a load hangs, the event loop goes on and the old value is served."""
    is_loading, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def load(read: Read) -> str:
        text = read(file).decode()
        if text != "one":
            loop.call_soon_threadsafe(is_loading.set)
            may_end.wait()
        return text

    watched = Watched("callers", load)
    async with running(watched, NEVER) as (reloads, told):
        put(file, "two")
        reloads.check_now()
        await is_loading.wait()
        assert watched.value == "one"
        may_end.set()
        assert await told.get() == "callers ok"
        assert watched.value == "two"
