"""The command as a person runs it, in a process (cli/{arguments,capabilities,commands,image,lines,screen,usage}.py)."""

import hashlib
import json
import os
import shutil
import signal
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

from tests.client.command import klein, on_a_terminal, read_until, running
from tests.client.conftest import completed, event, opening, refuse


def file(format: str = "PNG", edge: int = 32) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (edge, edge), "red").save(buffer, format)
    return buffer.getvalue()


def refusal(status: str, reason: str, **said: Any) -> Any:
    def script(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, grpc.StatusCode[status], reason, **said)
        yield from ()

    return script


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
    (["generate", "x"], 3, "no klein server answers at 127.0.0.1:9: Connection refused"),
    (["capabilities", "--server", "no-such-host.invalid:1"], 3, "no klein server answers at no-such-host.invalid:1"),
    (["generate", "x", "-o", "x.gif"], 2, "must end in .png, .webp, .jpg"),
    (["generate", "x", "-o", "missing/x.png"], 2, "there is no folder missing"),
    (["generate", "x", "--size", "256"], 2, "size: '256' is not WIDTHxHEIGHT"),
    (["generate", "x", "--steps", "-1"], 2, "steps: "),
    (["generate"], 2, "PROMPT"),
    (["edit", "x"], 2, "-r/--reference"),
    (["edit", "x", "-r", "missing.png"], 2, "missing.png: there is no such file"),
    (["usage", "--from", "yesterday"], 2, "yesterday: not a date"),
    (["usage", "records", "--format", "xml"], 2, "choose from"),
    (["attach"], 2, "KEY"),
    (["attach", "é"], 2, "idempotency_key: "),
    (["generate", "x", "--key", "", "--detach"], 2, "detach: without an idempotency key"),
    (["capabilities", "--token-file", "missing"], 2, "missing: there is no such file"),
    (["capabilities", "--server", "http://localhost"], 2, "is a URL"),
    ([], 2, "COMMAND"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """An address where nobody answers is exit code 3 and bad arguments are 2, each one line and never a traceback."""
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


CODES = [
    ("INVALID_ARGUMENT", "INVALID_FIELD", 1),
    ("FAILED_PRECONDITION", "RESULT_GONE", 1),
    ("UNAVAILABLE", "DRAINING", 3),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 3),
    ("DEADLINE_EXCEEDED", "DEADLINE_PASSED", 4),
    ("UNAUTHENTICATED", "UNAUTHENTICATED", 5),
    ("PERMISSION_DENIED", "PERMISSION_DENIED", 5),
]


@pytest.mark.parametrize(("status", "reason", "code"), CODES)
def test_exit_codes(server: Any, status: str, reason: str, code: int) -> None:
    """Scripts tell by the exit code whether to try again; the help says every code."""
    server.play(refusal(status, reason))
    done = klein("capabilities", server=server.target)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"klein: no ({reason})\n")
    assert f"\n  {code}  " in klein("--help").stdout


def test_events_for_programs(server: Any, tmp_path: Path) -> None:
    """With --json standard output is a line for each event, the last one after the file is written, and no pictures."""
    server.play(picture)
    options = ["--json", "--preview-dir", "previews", "--key", "key-1"]
    done = klein("generate", "x", *options, server=server.target, folder=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = [line["event"] for line in lines]
    assert names == ["accepted", "queued", "started", "progress", "preview", "progress", "preview", "image"]
    assert (lines[0]["seed"], lines[0]["idempotency_key"], lines[0]["request_id"]) == (7, "key-1", "request-1")
    assert (lines[4]["path"], lines[4]["size"]) == ("previews/step-1.jpg", [8, 4])
    assert (lines[-1]["path"], lines[-1]["size_bytes"]) == ("out.png", len(file()))
    assert lines[-1]["usage"]["cost_microusd"] == 14_000
    assert "data" not in done.stdout
    assert done.stderr == ""


def test_error_for_programs(server: Any, tmp_path: Path) -> None:
    """With --json the error is the last line, with all that the library knows of it."""
    server.play(refusal("INVALID_ARGUMENT", "INVALID_FIELD", fields={"prompt": "is blank"}))
    done = klein("generate", "x", "--json", server=server.target, folder=tmp_path)
    [line] = map(json.loads, done.stdout.splitlines())
    assert (line["event"], line["reason"], line["request_id"]) == ("error", "INVALID_FIELD", "request-1")
    assert line["violations"] == [{"field": "prompt", "description": "is blank"}]
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("place", ["read-only/out.png", "folder.png"])
def test_nothing_is_paid_for_a_file_that_cannot_be_written(server: Any, tmp_path: Path, place: str) -> None:
    """Where the image could not be written the server is not even asked."""
    server.play(picture)
    (tmp_path / "read-only").symlink_to("/proc")  # where nobody makes files, root neither
    (tmp_path / "folder.png").mkdir()
    done = klein("generate", "x", "-o", place, server=server.target, folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert place in done.stderr
    assert not server.requests


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_leave_nothing(server: Any, tmp_path: Path, name: str, code: int) -> None:
    """A command that is ended cancels its request, keeps the older picture, and leaves no half of a new one."""
    begun, ended = threading.Event(), threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        yield from opening()
        begun.set()
        ended.wait(20)

    server.play(endless)
    (tmp_path / "out.png").write_bytes(b"older")
    with running(["generate", "x"], server.target, tmp_path) as process:
        assert begun.wait(20)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors == ("klein: cancelled\n" if name == "SIGINT" else "")
    assert ended.wait(10)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_attach_and_cancel(server: Any, tmp_path: Path) -> None:
    """A request is fetched and ended by its key; an image that is not what its name says is written, and said."""
    server.play(picture)
    done = klein("attach", "key-1", "-o", "a.webp", server=server.target, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "klein: a.webp holds png, as it was asked for\n"
    assert (tmp_path / "a.webp").read_bytes() == file()
    server.play(lambda request, context: iter([pb.CancelResponse()]))
    assert klein("cancel", "key-1", server=server.target).returncode == 0
    assert [request.idempotency_key for request in server.requests] == ["key-1", "key-1"]
    server.play(refusal("NOT_FOUND", "UNKNOWN_KEY"))
    assert "UNKNOWN_KEY" in klein("cancel", "key-1", server=server.target).stderr


def test_detach(server: Any, tmp_path: Path) -> None:
    """Who interrupts a detached request is told how to fetch it."""
    begun, release = threading.Event(), threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(release.set)
        yield from opening()
        begun.set()
        release.wait(20)

    server.play(endless)
    with running(["generate", "x", "--detach"], server.target, tmp_path) as process:
        assert begun.wait(20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    key = server.requests[0].options.idempotency_key
    assert errors == f"klein: the request may go on; klein attach {key}\nklein: cancelled\n"


def test_token_file(server: Any, tmp_path: Path) -> None:
    """The token comes from a file or the environment, and is never in the arguments."""
    (tmp_path / "token").write_text("from-the-file\n")
    server.play(refusal("UNAUTHENTICATED", "UNAUTHENTICATED"))
    klein("capabilities", "--token-file", "token", server=server.target, folder=tmp_path)
    klein("capabilities", server=server.target, KLEIN_TOKEN="from-the-environment")
    said = [metadata["authorization"] for metadata in server.metadata]
    assert said == ["Bearer from-the-file", "Bearer from-the-environment"]
    assert "--token " not in klein("generate", "--help").stdout
    refused = klein("capabilities", server="klein.invalid", KLEIN_TOKEN="from-the-environment")
    assert refused.returncode == 2
    assert "from-the-environment" not in refused.stderr


def test_grpc_says_nothing_itself(server: Any) -> None:
    """What gRPC would log of a failed handshake is left to our own line: gRPC is loaded after it was told so."""
    done = klein("capabilities", "--tls", server=server.target)
    assert done.stderr == f"klein: no klein server answers at {server.target}: it does not speak TLS (UNAVAILABLE)\n"
    code = "import sys, kleinclient.cli; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str) -> None:
    """The completion script knows every command, and its shell reads it without complaint."""
    script = klein("completion", shell).stdout
    assert all(name in script for name in ("generate", "--tls-certificate", "records"))
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, timeout=20).returncode == 0


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
