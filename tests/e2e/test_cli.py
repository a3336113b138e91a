"""The command against the real server with the mini checkpoint: what a person gets, and what the server counts."""

import os
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.client.command import klein, on_a_terminal, read_until
from tests.e2e.conftest import Serving


def test_generate(serving: Serving, tmp_path: Path) -> None:
    """A generation leaves its image and its previews, and says what they took."""
    options = ["-o", "red.png", "--size", "128x64", "--seed", "42", "--preview-dir", "previews"]
    done = klein("generate", "a red circle", *options, server=serving.target, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    line = r"red\.png 128x64 PNG seed 42: 1 MP, \$0\.014000 \(.+\), \d+\.\d\d s\n"
    assert re.fullmatch(line, done.stdout), done.stdout
    with Image.open(tmp_path / "red.png") as picture:
        assert picture.size == (128, 64)
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names[-1] == "step-4.jpg"


def test_edit(serving: Serving, tmp_path: Path) -> None:
    """An image that was generated can be edited; without --size the result is as large as its reference."""
    made = klein("generate", "a red circle", "-o", "a.png", "--size", "64x96", server=serving.target, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    done = klein("edit", "make it green", "-r", "a.png", "-o", "b.webp", server=serving.target, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "b.webp") as picture:
        assert (picture.size, picture.format) == ((64, 96), "WEBP")


def test_same_seed_same_bytes(serving: Serving, tmp_path: Path) -> None:
    """The same command writes the same file."""
    for name in ("a.png", "b.png"):
        options = ["--seed", "1", "--size", "64x64", "-o", name]
        assert klein("generate", "a star", *options, server=serving.target, folder=tmp_path).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--size", "100x64"], "options.width"),
        (["--steps", "1000"], "options.steps"),
        (["--guidance", "2"], "options.guidance_scale"),
        (["--quality", "80"], "options.output.quality"),
    ],
)
def test_refused_field(serving: Serving, tmp_path: Path, options: list[str], field: str) -> None:
    """A refused field is one line that names it, and exit code 1."""
    done = klein("generate", "x", *options, server=serving.target, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert field in done.stderr
    assert "INVALID_FIELD" in done.stderr


def test_not_an_image(serving: Serving, tmp_path: Path) -> None:
    """A reference that is no image is named by its place."""
    (tmp_path / "a.png").write_bytes(b"not an image")
    done = klein("edit", "x", "-r", "a.png", server=serving.target, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "references[0].image" in done.stderr


def test_capabilities_and_usage(serving: Serving) -> None:
    """Capabilities name the model; usage, which this server does not keep yet, is one line."""
    done = klein("capabilities", server=serving.target)
    assert done.returncode == 0, done.stderr
    assert "mini" in done.stdout
    refused = klein("usage", server=serving.target)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "NOT_IMPLEMENTED" in refused.stderr


def test_interrupt(serving: Serving, tmp_path: Path) -> None:
    """Ctrl-C on the terminal ends the request in the server's batch, not only the command."""
    before = serving.counted("klein_cancelled_total")
    arguments = ["generate", "a red circle", "--size", "1024x1024", "--steps", "50"]
    with on_a_terminal(arguments, serving.target, tmp_path) as (process, terminal):
        read_until(terminal, " of 50", seconds=60)
        os.write(terminal, b"\x03")
        shown = read_until(terminal, None)
        assert process.wait(20) == 130
    assert shown.rstrip().endswith("klein: cancelled")
    end = time.monotonic() + 30
    while serving.counted("klein_cancelled_total") == before and time.monotonic() < end:
        time.sleep(0.2)  # a scrape has nothing to await
    assert serving.counted("klein_cancelled_total") == before + 1
