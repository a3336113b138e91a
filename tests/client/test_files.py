"""Files are written whole or not at all."""

import os
import resource
import stat
from pathlib import Path

import pytest
from kleinclient.files import Destination, write


def test_written_at_once(tmp_path: Path) -> None:
    """A new file has the usual mode, an old one keeps its own, and nothing is left beside them."""
    old = tmp_path / "old.png"
    old.write_bytes(b"before")
    old.chmod(0o640)
    mask = os.umask(0o022)
    try:
        assert write(old, b"after") == old
        assert write(str(tmp_path / "new.png"), b"after").read_bytes() == b"after"
    finally:
        os.umask(mask)
    assert old.read_bytes() == b"after"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, tmp_path / "new.png")] == [0o640, 0o644]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.png", "old.png"]


def test_a_full_disk_harms_nothing(tmp_path: Path) -> None:
    """Where the bytes find no room, the old file stays, the error names it, and nothing is left beside it."""
    path = tmp_path / "out.png"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"out\.png"):
            write(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_nothing_changed(tmp_path: Path) -> None:
    """A destination that is left without a write leaves everything as it was."""
    with Destination(tmp_path / "out.png"):
        assert not (tmp_path / "out.png").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["folder", "missing/out.png"])
def test_impossible_places(tmp_path: Path, name: str) -> None:
    """A folder, and a place in no folder, fail before there is anything to write."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=name), Destination(tmp_path / name):
        pytest.fail("opened")


def test_links_and_devices(tmp_path: Path) -> None:
    """A link is followed, and what is no regular file is written to as it is."""
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write(tmp_path / "link.png", b"data")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == b"data"
    write("/dev/null", b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
