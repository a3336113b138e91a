"""What `pip install klein-serve` brings: the wheel, built from this tree, without the extras."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"kleinserve": "server", "kleinclient": "client", "klein": "proto/gen"}
PLAIN = ("google", "grpc", "grpc_status", "typing_extensions")  # modules of the plain install's packages and of theirs
IMPORTS = """
import importlib.abc, pkgutil, sys

class Plain(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "kleinclient", "klein", *sys.argv[2:]}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Plain())
sys.path.insert(0, sys.argv[1])
import kleinclient
for module in pkgutil.iter_modules(kleinclient.__path__, "kleinclient."):
    if not module.ispkg:
        __import__(module.name)
print(kleinclient.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    [built] = folder.iterdir()
    return built


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_in_the_wheel(wheel: Path, package: str) -> None:
    """Not its modules alone: mini, the geometries, the migrations, the playground, the stubs' types."""
    folder = ROOT / PACKAGES[package]
    files = {path for path in (folder / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    names = zipfile.ZipFile(wheel).namelist()
    assert {path.relative_to(folder).as_posix() for path in files} <= set(names)
    assert any(name.startswith(f"{package}/") for name in names)


def test_without_extras_the_client_is_whole(wheel: Path, tmp_path: Path) -> None:
    """Every module of the client library can be imported where nothing but the plain install's packages is there."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [sys.executable, "-I", "-c", IMPORTS, str(tmp_path), *PLAIN]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(tmp_path)
