"""Files that are written whole or not at all: a full disk or a cut never harms what was there before."""

import os
import stat
import tempfile
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self


class Destination:
    """A file about to be written: opened beside its name, so that what cannot work fails before there is anything.

        with Destination("out.png") as destination:     # OSError, if nothing can be written there
            destination.write(data)                     # "out.png" is replaced at once

    A link is followed; what is no regular file (a pipe, /dev/null) is written to directly. Left without a `write`,
    nothing has changed.
    """

    def __init__(self, path: str | PathLike[str]):
        self.path = Path(path)
        self._place = self.path.resolve()
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        """Raises: OSError, with the file's own name."""
        if self._place.is_dir():
            raise IsADirectoryError(21, os.strerror(21), str(self.path))
        if self._place.exists():
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)) if self._place.is_file() else None
        if self._place.is_file() or not self._place.exists():
            self._temporary = self._beside()
        return self

    def write(self, data: bytes) -> None:
        """Put `data` in the file's place. Raises: OSError; then the file is as it was."""
        try:
            if self._temporary is None:
                self._place.write_bytes(data)
                return
            self._temporary.write_bytes(data)
            self._temporary.chmod(self._mode())
            self._temporary.replace(self._place)
            self._temporary = None
        except OSError as error:
            raise _named(error, self.path) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _beside(self) -> Path:
        try:
            number, name = tempfile.mkstemp(dir=self._place.parent, prefix=f".{self._place.name[:64]}.")
        except OSError as error:
            raise _named(error, self.path) from None
        os.close(number)
        return Path(name)

    def _mode(self) -> int:
        """The mode of the file that is replaced, else that of any new file."""
        try:
            return stat.S_IMODE(self._place.stat().st_mode)
        except FileNotFoundError:
            mask = os.umask(0)
            os.umask(mask)
            return 0o666 & ~mask


def write(path: str | PathLike[str], data: bytes) -> Path:
    """Write `data` whole or not at all; the path. Raises: OSError."""
    with Destination(path) as destination:
        destination.write(data)
    return destination.path


def _named(error: OSError, path: Path) -> OSError:
    return type(error)(error.errno, error.strerror, str(path))
