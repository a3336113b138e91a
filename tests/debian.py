"""Programs of Debian's packages: as installed, or unpacked into the user's cache, since installing starts daemons."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

CACHE = user_cache_path("kleinserve") / "debian"


def program(name: str, package: str, cache: Path = CACHE) -> str:
    """The path of a program, on PATH or in the cache, where the package is unpacked once.

    Raises: RuntimeError, one line with the package, where there is neither the program nor apt-get with a network.
    """
    if found := shutil.which(name):
        return found
    place = cache / package
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            try:
                _unpack(package, Path(folder))
            except (OSError, subprocess.CalledProcessError) as error:
                raise RuntimeError(f"no {name}: apt-get install {package} ({_said(error)})") from None
            os.rename(Path(folder) / "root", place)
    return str(place / "usr" / "bin" / name)


def _unpack(package: str, folder: Path) -> None:
    """The package's files under folder/root. An image's lists of packages may be missing: only root can get them."""
    try:
        _run(folder, "apt-get", "download", package)
    except subprocess.CalledProcessError:
        _run(folder, "apt-get", "update")
        _run(folder, "apt-get", "download", package)
    (file,) = folder.glob("*.deb")
    _run(folder, "dpkg", "-x", str(file), "root")


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _said(error: OSError | subprocess.CalledProcessError) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return said.strip().splitlines()[-1][-200:] if said.strip() else str(error)
