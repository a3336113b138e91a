"""The command as a person runs it: a process of its own, against a server that says what the test wrote."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from klein.v1 import image_pb2 as pb
from kleinclient.cli.screen import spoken
from PIL import Image

from tests.client.command import klein, on_a_terminal, read_until
from tests.client.conftest import completed, event, opening, refuse


def file(format: str = "PNG", edge: int = 32) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (edge, edge), "red").save(buffer, format)
    return buffer.getvalue()


def picture(request: Any, context: grpc.ServicerContext) -> Any:
    """A whole stream whose previews and image can be drawn."""
    for message in opening():
        if message.WhichOneof("event") == "preview":
            message.preview.data = file("JPEG", edge=8)
        yield message
    data = file()
    digest = hashlib.sha256(data).digest()
    yield event(image_header=pb.ImageHeader(format=1, width=32, height=32, size_bytes=len(data), sha256=digest))
    yield event(image_chunk=pb.ImageChunk(data=data))
    yield completed()


def test_generate(server: Any, tmp_path: Path) -> None:
    """An image is written, its previews too, and a pipe gets the one line of usage and nothing else."""
    server.play(picture)
    options = ["--size", "64x32", "--seed", "7", "--steps", "2", "--transparent", "--preview-dir", "previews/of/it"]
    done = klein("generate", "a red circle", "-o", "red.png", *options, server=server.target, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "red.png 32x32 PNG seed 7: 1 MP, $0.014000 (test), 0.42 s\n"
    assert (tmp_path / "red.png").read_bytes() == file()
    assert sorted(path.name for path in (tmp_path / "previews/of/it").iterdir()) == ["step-1.jpg", "step-2.jpg"]
    asked = server.requests[0]
    assert (asked.prompt, asked.options.width, asked.options.seed, asked.options.steps) == ("a red circle", 64, 7, 2)
    assert asked.options.output == pb.OutputOptions(format="IMAGE_FORMAT_PNG", background="BACKGROUND_TRANSPARENT")


@pytest.mark.parametrize(("name", "format"), [("a.webp", 2), ("a.jpg", 3), ("a.JPEG", 3)])
def test_format_follows_the_name(server: Any, tmp_path: Path, name: str, format: int) -> None:
    """The suffix of the output decides the format that is asked for."""
    server.play(picture)
    assert klein("generate", "x", "-o", name, "-q", server=server.target, folder=tmp_path).returncode == 0
    assert server.requests[0].options.output.format == format


def test_edit(server: Any, tmp_path: Path) -> None:
    """References go in the order in which they were given."""
    server.play(picture)
    (tmp_path / "a.png").write_bytes(b"first")
    (tmp_path / "b.png").write_bytes(b"second")
    done = klein("edit", "both", "-r", "a.png", "-r", "b.png", server=server.target, folder=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "out.png").exists()
    assert [reference.image for reference in server.requests[0].references] == [b"first", b"second"]


def test_refused(server: Any, tmp_path: Path) -> None:
    """A refusal is one line on standard error, whatever the server wrote, and nothing is left behind."""

    def no(request: Any, context: grpc.ServicerContext) -> Any:
        message = "options.width: 100 is not a multiple of 16;\n options.steps: 99 is not 0 to 50"
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", message)
        yield from ()

    server.play(no)
    done = klein("generate", "x", server=server.target, folder=tmp_path)
    words = "options.width: 100 is not a multiple of 16; options.steps: 99 is not 0 to 50 (INVALID_FIELD)"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"klein: {words}\n")
    assert not list(tmp_path.iterdir())


BAD = [
    (["generate", "x"], 1, "no klein server answers at 127.0.0.1:9: Connection refused"),
    (["capabilities", "--server", "no-such-host.invalid:1"], 1, "no klein server answers at no-such-host.invalid:1"),
    (["generate", "x", "-o", "x.gif"], 2, "must end in .png, .webp, .jpg"),
    (["generate", "x", "-o", "missing/x.png"], 2, "there is no folder missing"),
    (["generate", "x", "--size", "256"], 2, "size: '256' is not WIDTHxHEIGHT"),
    (["generate", "x", "--steps", "-1"], 2, "steps: "),
    (["generate"], 2, "PROMPT"),
    (["edit", "x"], 2, "-r/--reference"),
    (["edit", "x", "-r", "missing.png"], 2, "missing.png: there is no such file"),
    (["usage", "--start", "yesterday"], 2, "yesterday: not a date"),
    ([], 2, "COMMAND"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """A wrong address is exit code 1 and bad arguments are 2, each one readable line and never a traceback."""
    done = klein(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.startswith("klein")
    assert words in done.stderr


def test_terminal(server: Any, tmp_path: Path) -> None:
    """On a terminal the queue, the steps and the pictures are shown, and the last line is the usage."""
    server.play(picture)
    with on_a_terminal(["generate", "a red circle"], server.target, tmp_path) as (process, terminal):
        shown = read_until(terminal, None)
        assert process.wait(20) == 0
    assert "step 2 of 2" in shown
    assert shown.count("▀") >= 100
    assert shown.rstrip().endswith("out.png 32x32 PNG seed 7: 1 MP, $0.014000 (test), 0.42 s")


def test_interrupt(server: Any, tmp_path: Path) -> None:
    """Ctrl-C cancels the request at the server and ends with one line and exit code 130."""
    ended = threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        yield from opening()
        ended.wait(20)

    server.play(endless)
    with on_a_terminal(["generate", "a red circle"], server.target, tmp_path) as (process, terminal):
        read_until(terminal, "step 2 of 2")
        os.write(terminal, b"\x03")
        shown = read_until(terminal, None)
        assert process.wait(20) == 130
    assert shown.rstrip().endswith("klein: cancelled")
    assert "Traceback" not in shown
    assert ended.wait(10)
    assert not (tmp_path / "out.png").exists()


def test_capabilities(server: Any) -> None:
    """Capabilities are a line each for people, and JSON for programs."""
    answer = pb.GetCapabilitiesResponse(model="mini", default_width=256, default_height=256, max_pixels=4_194_304)
    server.play(lambda request, context: iter([answer]))
    done = klein("capabilities", server=server.target)
    assert done.returncode == 0
    assert "up to 4,194,304 pixels" in done.stdout
    assert json.loads(klein("capabilities", "--json", server=server.target).stdout)["default_size"] == [256, 256]


def test_without_the_extra() -> None:
    """The library works without the terminal's packages, and the command says in one line what to install."""
    code = """
import sys
for name in ("rich", "PIL", "textual_image"):
    sys.modules[name] = None
import kleinclient
from kleinclient.cli import main
sys.exit(main(["capabilities"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("the command needs: pip install 'klein-serve[cli]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("seconds", "words"), [(0.84, "0.8 s"), (12.4, "12 s"), (59.7, "1 min 0 s")])
def test_spoken(seconds: float, words: str) -> None:
    """Durations read as people say them."""
    assert spoken(seconds) == words
