"""The log of real processes, on every kind of broken standard error."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BEGIN = """
import logging, os, sys, threading, time, warnings
import structlog
from kleinserve import process
process.open_standard_streams()
from kleinserve.config import Config
from kleinserve.logs import configure
logs = configure(Config())
log = structlog.get_logger()
"""
MANY = """
for number in range(5000):
    log.info("line", number=number, text="x" * 100)
"""
END = """
logs.announce(f"dropped {logs.dropped}")
started = time.monotonic()
logs.close(1.0)
logs.announce(f"closed {time.monotonic() - started < 5.0}")
os._exit(0)
"""


def run(body: str, **streams: Any) -> "subprocess.CompletedProcess[str]":
    """What a process printed that configures the log and then does this."""
    command = [sys.executable, "-c", BEGIN + body + END]
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command, text=True, timeout=60, **given)


def events(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    assert done.returncode == 0
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_healthy() -> None:
    """Each event is one JSON line, in order, and none is lost; standard output has announcements alone."""
    done = run(MANY)
    found = events(done)
    assert [event["number"] for event in found] == list(range(5000))
    assert found[0]["event"] == "line"
    assert found[0]["level"] == "info"
    assert done.stdout == "dropped 0\nclosed True\n"


def test_closed_pipe() -> None:
    """With the reader gone the process goes on, and counts what it dropped."""
    reading, writing = os.pipe()
    os.close(reading)
    wait = "while logs.dropped < 5000: time.sleep(0.01)\n"
    done = run(MANY + wait, stderr=writing)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "dropped 5000\nclosed True\n")


def test_unread_pipe() -> None:
    """With a reader that does not read, lines past the queue's end are dropped at once; neither work nor exit waits."""
    reading, writing = os.pipe()
    done = run(MANY * 4, stderr=writing)
    os.close(writing)
    kept = os.read(reading, 1 << 20)
    os.close(reading)
    assert done.returncode == 0
    first, last = done.stdout.splitlines()
    assert int(first.removeprefix("dropped ")) > 5000
    assert last == "closed True"
    assert json.loads(kept.splitlines()[0])["number"] == 0


def test_reader_that_comes_back() -> None:
    """After a slow reader has read, all that waited arrives, whole."""
    done = run(
        "reading, writing = os.pipe(); os.dup2(writing, logs._errors)\n"
        + MANY
        + "found = b''\nwhile found.count(b'\\n') < 5000: found += os.read(reading, 65536)\n"
        "logs.announce(str(found.count(b'\"line\"')))\n"
    )
    assert done.stdout == "5000\ndropped 0\nclosed True\n"


def test_full_disk() -> None:
    """On a full disk lines are dropped and counted."""
    with open("/dev/full", "w") as full:
        done = run(MANY + "while logs.dropped < 5000: time.sleep(0.01)\n", stderr=full)
    assert (done.returncode, done.stdout) == (0, "dropped 5000\nclosed True\n")


def test_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """A line that was cut by a limit of the disk does not spoil the first one after it."""
    body = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
for number in range(20):
    log.info("before", text="x" * 100)
while not logs.dropped: time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.info("after")
"""
    with open(tmp_path / "log", "w") as file:
        done = run(body, stderr=file)
    lines = (tmp_path / "log").read_text().splitlines()
    assert done.returncode == 0
    assert json.loads(lines[-1])["event"] == "after"
    whole = sum(line.endswith("}") for line in lines) - 1
    assert done.stdout.splitlines()[0] == f"dropped {20 - whole}"


def test_closed_standard_error() -> None:
    """With `2>&-` nothing is written, whatever file gets the number 2 later, and nothing of it on standard output."""
    body = MANY + "log.error('x'); print('hello', file=sys.stderr); os.system('echo child >&2')\n"
    shell = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, BEGIN + body + END]
    done = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "dropped 0\nclosed True\n")


def test_file_2_taken_by_another(tmp_path: Path) -> None:
    """A file that has the number 2 when the process begins, because 2 was closed, is not written to."""
    body = "sys.__stderr__ = sys.stderr = None\nos.dup2(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 2)\n"
    script = "import os, sys\n" + body + BEGIN + "log.error('x'); print('y', file=sys.stderr)\n" + END
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "theirs")], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "theirs").read_bytes() == b""


def test_standard_output_is_for_announcements() -> None:
    """What libraries print, by Python, by C or from a child, does not get to standard output; Python's is logged."""
    body = "print('by print'); os.write(1, b'by number'); os.system('echo by a child')\n"
    done = run(body)
    assert done.stdout == "dropped 0\nclosed True\n"
    assert [(event["event"], event["logger"]) for event in events(done)] == [("by print", "stdout")]


@pytest.mark.parametrize("output", [">&-", "> /dev/full", "| true"])
def test_announcement_that_nobody_takes(output: str) -> None:
    """A standard output that is closed, full or without a reader ends nothing."""
    script = BEGIN + "logs.announce('x'); log.info('here')\n" + END
    shell = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {output}', sys.executable, script]
    done = subprocess.run(shell, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60)
    assert [event["event"] for event in events(done)] == ["here"]


def test_pythons_own() -> None:
    """Warnings, `logging`, uncaught errors of threads, of finalisers and of the process are events of one line."""
    body = """
warnings.warn("careful")
logging.getLogger("library").error("went %s", "wrong")
logging.getLogger("library").error("%d", "no number")
logging.getLogger("library").log(35, "odd level")
logging.getLogger("library").info("left out")
def fail(): raise ValueError("in a thread")
thread = threading.Thread(target=fail, name="t1"); thread.start(); thread.join()
class Last:
    def __del__(self): raise ValueError("in a finaliser")
Last()
sys.stderr.write("by a "); sys.stderr.write("library\\rand more\\n")
sys.excepthook(KeyError, KeyError("of main"), None)
"""
    found = events(run(body))
    said = [event["event"] for event in found]
    assert "careful" in said[0]
    assert said[1:] == [
        "went wrong", "%d", "odd level", "uncaught", "unraisable", "by a library", "and more", "uncaught"
    ]  # fmt: skip
    assert found[3]["level"] == "warning"
    assert "ValueError: in a thread" in found[4]["exception"]
    assert found[4]["thread"] == "t1"
    assert "ValueError: in a finaliser" in found[5]["exception"]
    assert "KeyError: 'of main'" in found[8]["exception"]


def test_what_cannot_be_shown() -> None:
    """Values, errors and keys that fail when shown, endless ones and deep ones are logged by their type."""
    body = """
class Bad(Exception):
    def __str__(self): raise BaseException("never")
    __repr__ = __str__
log.info("value", value=Bad())
log.info("key", **{"a": {Bad: 1}})
log.info(Bad())
log.error("error", exc_info=Bad())
circle = []; circle.append(circle)
log.info("circle", value=circle)
first = error = ValueError("first")
for _ in range(3000):
    error.__cause__ = ValueError("nested"); error = error.__cause__
log.error("nested", exc_info=first)
group = ValueError("deep")
for _ in range(3000): group = ExceptionGroup("group", [group])
log.error("group", exc_info=group)
def down(): down()
try: down()
except RecursionError: log.exception("recursion")
log.info("surrogate", value="\\ud800", nul="\\0", big="x" * 1_000_000)
log.info("many", values=["x" * 1000] * 100)
log.info("line\\nfeed")
"""
    found = events(run(body))
    said = {event["event"]: event for event in found}
    assert len(found) == 11
    assert said["value"]["value"] == "<Bad: BaseException>"
    assert "Bad" in said["error"]["exception"]
    assert len(said["nested"]["exception"]) < 10_000
    assert "RecursionError" in said["recursion"]["exception"]
    assert len(said["surrogate"]["big"]) < 10_000
    assert "characters" in said["many"]["unlogged"]
    assert "circle" in said
    assert "key" in said
    assert "group" in said
    assert "line\nfeed" in said


def test_logging_from_a_signal_and_a_finaliser() -> None:
    """Whoever interrupts a thread that is just logging may log as well: nothing waits for itself."""
    body = """
import gc, signal
class Ring:
    def __init__(self): self.ring = self
    def __del__(self): log.info("finalised")
signal.signal(signal.SIGALRM, lambda *_: log.info("signal"))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for number in range(3000): Ring(); log.info("line")
signal.setitimer(signal.ITIMER_REAL, 0)
gc.collect()
"""
    said = [event["event"] for event in events(run(body))]
    assert said.count("line") + said.count("finalised") == 6000
    assert said.count("signal") > 0


def test_for_a_person() -> None:
    """With log_format=console lines are for a person, without colours where they are not on a terminal."""
    script = (BEGIN + "log.error('went wrong', exc_info=ValueError('why'))\n" + END).replace(
        "Config()", "Config(log_format='console')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "went wrong" in done.stderr
    assert "ValueError: why" in done.stderr
    assert "\x1b" not in done.stderr
    assert "unlogged" not in done.stderr
