"""`buf generate` writes each language's stubs from the repository as it is."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.interop import install
from clients.languages import LANGUAGES
from tests.proto.check import BUF, ROOT

PLUGINS: list[dict[str, Any]] = yaml.safe_load((ROOT / "buf.gen.yaml").read_text())["plugins"]
EVERY = {"go", "node", "browser", "java", "cpp", "csharp", "ruby", "php"}
PATH = f"{BUF.parent}:{os.environ['PATH']}"


def _name(plugin: dict[str, Any]) -> str:
    return str(plugin.get("protoc_builtin") or Path(plugin["local"]).name)


def _is_missing(program: str) -> bool:
    return not (ROOT / program).exists() and shutil.which(program, path=PATH) is None


@pytest.mark.parametrize("plugin", PLUGINS, ids=_name)
def test_each_plugin_writes_the_contract(plugin: dict[str, Any], tmp_path: Path) -> None:
    """Each plugin whose program is here, protoc's own and npm's in any case, writes files that name the contract."""
    if plugin.get("local", "").startswith("clients/node_modules/"):
        install([language for language in LANGUAGES if language.name == "node"])
    if "local" in plugin and _is_missing(plugin["local"]):
        pytest.skip(f"{plugin['local']} is not installed")
    template = json.dumps({"version": "v2", "plugins": [plugin]})
    buf = [BUF, "generate", "--template", template, "--output", tmp_path]
    subprocess.run(buf, cwd=ROOT, env={**os.environ, "PATH": PATH}, check=True)
    written = [path.read_text() for path in (tmp_path / plugin["out"]).rglob("*") if path.is_file()]
    assert any("klein.v1" in text or "Klein.V1" in text or "Klein\\V1" in text for text in written)


def test_every_language_is_generated_locally() -> None:
    """The example has each of the languages, into a folder of its own that git ignores, and asks no network."""
    assert {Path(plugin["out"]).parts[3] for plugin in PLUGINS} == EVERY
    assert all("protoc_builtin" in plugin or "local" in plugin for plugin in PLUGINS)
    assert "/clients/build/" in (ROOT / ".gitignore").read_text().splitlines()
