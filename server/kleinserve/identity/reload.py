"""Files that are read again when they change. Knows nothing of what is in them; never blocks the event loop."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from kleinserve.errors import BadConfig

T = TypeVar("T")
Read = Callable[[Path], bytes]  # raises BadConfig

CHECK_SECONDS = 5.0

log = structlog.get_logger()


class Watched(Generic[T]):
    """The newest good content of some files, as `value`.

    `load` reads them through the function that it is given, and raises BadConfig for what cannot be used. Contents are
    compared, not times: a rename over a file, or a turn of its directory's symbolic link, is a change; `touch` is none.
    """

    def __init__(self, what: str, load: Callable[[Read], T]):
        """Load for the first time. `what`: the name in metrics and log. Raises: BadConfig."""
        self.what = what
        self._load = load
        self._seen: dict[Path, bytes | None] = {}
        self.value: T = load(self._read)

    def reload(self) -> bool:
        """Load again where a file has changed, and say whether one had.

        Raises: BadConfig, once for each bad content; `value` stays as it was.
        """
        if all(_digest(path) == digest for path, digest in self._seen.items()):
            return False
        self._seen = {}
        self.value = self._load(self._read)
        return True

    def _read(self, path: Path) -> bytes:
        try:
            if not path.is_file():  # a pipe would keep its reader for ever
                raise FileNotFoundError(2, "No such file")
            content = path.read_bytes()
        except OSError as error:
            self._seen[path] = None
            raise BadConfig(f"cannot read {path}: {error.strerror}") from error
        self._seen[path] = hashlib.sha256(content).digest()
        return content


class Reloads:
    """Looks at watched files every few seconds, and at once when told to."""

    def __init__(
        self,
        watched: Sequence[Watched[Any]],
        on_reload: Callable[[str, str], None],
        check_seconds: float = CHECK_SECONDS,
    ):
        """`on_reload` is called on the event loop with what changed and `ok` or `refused`."""
        self._watched, self._on_reload, self._check_seconds = watched, on_reload, check_seconds
        self._is_told = asyncio.Event()

    def check_now(self) -> None:
        """Look now: for SIGHUP. Called on the event loop; returns at once."""
        self._is_told.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_told.wait(), self._check_seconds)
            self._is_told.clear()
            for watched in self._watched:
                await self._check(watched)

    async def _check(self, watched: Watched[Any]) -> None:
        try:
            if not await asyncio.to_thread(watched.reload):
                return
        except BadConfig as error:
            log.warning("reload refused, the old one stays", what=watched.what, why=str(error))
            self._on_reload(watched.what, "refused")
        except Exception as error:  # a fault of ours must not end the watch; its text might quote the file
            log.error("reload failed, the old one stays", what=watched.what, why=type(error).__name__)
            self._on_reload(watched.what, "refused")
        else:
            log.info("reloaded", what=watched.what)
            self._on_reload(watched.what, "ok")


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
    except OSError:
        return None
