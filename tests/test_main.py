"""The start and the end of the process, whatever it is started with.

`app.run` is given by each test; what the real one does is tests/e2e's.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kleinserve.__main__ import EXTRAS, _parser
from kleinserve.config import Config

from tests.test_process import as_number

MAIN = """
import os, signal, sys, types
app = types.ModuleType("kleinserve.app")
exec(sys.argv.pop(1), app.__dict__)
sys.modules["kleinserve.app"] = app
{before}
from kleinserve.__main__ import main
main()
"""
SERVES = "def run(config, logs): logs.announce(f'serving on {config.address(1)}'); return 0"
AT_IMPORT = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}: os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
for known in [known for known in sys.modules if known == {module!r}]: del sys.modules[known]
"""


def command(*arguments: str, run: str = SERVES, before: str = "") -> list[str]:
    return [sys.executable, "-c", MAIN.replace("{before}", before), run, *arguments]


def start(*arguments: str, run: str = SERVES, before: str = "", **more: Any) -> "subprocess.CompletedProcess[str]":
    """`kleinserve` with these arguments, with this in place of app.py, after this has been done."""
    words = command(*arguments, run=run, before=before)
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **more)


def test_serve() -> None:
    """`serve` reads its settings, runs, prints what is announced and nothing else, and exits with what it returns."""
    done = start("serve", "--host", "::1", "--web-origins", "https://a.example", "--insecure")
    assert (done.returncode, done.stdout, done.stderr) == (0, "serving on [::1]:1\n", "")
    assert start("serve", run="def run(config, logs): return 7").returncode == 7


FLAGS = {  # of `serve`, with values that are none's default
    "model": "m", "revision": "abc", "vae": "v", "host": "::1", "port": "1", "metrics_port": "2", "web_port": "3",
    "web_origins": "https://a.example", "device": "cuda:1", "dtype": "float32", "memory": "offload", "compile": "off",
    "quantize": "fp8", "backend": "ray", "ledger": "none", "callers": __file__, "tls_certificate": __file__,
    "tls_key": __file__, "tls_client_ca": __file__, "insecure": True,
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_a_setting(name: str) -> None:
    """What the contract's command line names, `--revision` and `--vae` reach the setting of the same name."""
    words = [f"--{name.replace('_', '-')}", *([] if FLAGS[name] is True else [FLAGS[name]])]
    arguments = vars(_parser().parse_args(["serve", *words]))
    assert {given: value for given, value in arguments.items() if value is not None} == {
        "command": arguments["command"],
        name: FLAGS[name],
    }
    assert name in Config.model_fields


def test_a_revision_and_a_vae() -> None:
    """The flags of a checkpoint's parts are what it serves with."""
    run = "def run(config, logs): logs.announce(f'{config.revision} {config.vae}'); return 0"
    assert start("serve", "--revision", "abc", "--vae", "some/vae", run=run).stdout == "abc some/vae\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "None backend:native"),
    ],
)
def test_device_memory_grows_in_pieces(given: dict[str, str], expected: str) -> None:
    """Before torch is loaded its allocator is told to use segments that grow, unless the environment says otherwise."""
    run = """
import os, sys
assert "torch" not in sys.modules
def run(config, logs):
    logs.announce(" ".join(str(os.environ.get(f"PYTORCH_{which}ALLOC_CONF")) for which in ("", "CUDA_")))
    return 0
"""
    bare = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    assert start("serve", run=run, env=bare | given).stdout == f"{expected}\n"


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("kleinserve.errors", signal.SIGINT),
        ("argparse", signal.SIGTERM),
        ("pydantic", signal.SIGINT),
        ("ctypes", signal.SIGINT),
        ("structlog", signal.SIGINT),
        ("kleinserve.logs", signal.SIGTERM),
        ("getpass", signal.SIGINT),
        ("getpass", signal.SIGTERM),
    ],
)
def test_a_signal_at_any_moment_of_the_start(module: str, number: int) -> None:
    """A signal at each import from main's first line on ends it at once, without a word."""
    run = "def run(config, logs):\n  import getpass, time\n  time.sleep(60)"  # the main thread goes on
    done = start("serve", run=run, before=AT_IMPORT.format(module=module, number=number))
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_to_serve(number: int) -> None:
    """What was logged before a signal is written; the signal ends it wherever it is, deep in a recursion too."""
    run = f"""
import os, time, structlog
def down():
    try: down()
    except RecursionError:
        os.kill(os.getpid(), {number})
        time.sleep(60)
def run(config, logs):
    structlog.get_logger().info("loading")
    down()
"""
    done = start("serve", run=run)
    assert done.returncode == 128 + number
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["loading"]


def test_a_signal_during_long_work() -> None:
    """A signal does not wait for what the main thread does outside Python's bytecode."""
    run = """
import hashlib, os
def run(config, logs):
    os.system(f"(sleep 0.2; kill -INT {os.getpid()}) &")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # minutes
"""
    assert start("serve", run=run).returncode == 130


def test_hangup_is_not_the_end() -> None:
    """SIGHUP, which later means to read the callers anew, does nothing at the start."""
    run = "import os\ndef run(config, logs): os.kill(os.getpid(), 1); return 0"
    assert start("serve", run=run).returncode == 0


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        ("from kleinserve.errors import BadConfig as E", 2, "kleinserve: why not"),
        ("from kleinserve.errors import UnusableCheckpoint as E", 2, "kleinserve: why not"),
        ("class E(ModuleNotFoundError): name = 'torch.x'", 2, "pip install 'klein-serve[server]'"),
        ("class E(ModuleNotFoundError): name = 'starlette'", 2, "pip install 'klein-serve[web]'"),
        ("E = OSError", 1, '"event": "failed"'),
        ("class E(ModuleNotFoundError): name = 'kleinserve.x'", 1, '"event": "failed"'),
    ],
)
def test_why_it_does_not_start(raised: str, code: int, line: str) -> None:
    """What stops a start is one line: code 2 where starting again does not help, else 1 with a traceback inside it."""
    done = start("serve", run=f"def run(config, logs):\n  {raised}\n  raise E('why\\nnot')")
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr
    assert (code == 2) == done.stderr.startswith("kleinserve: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "x"], "setting port: "),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--config", "/nonexistent"], "cannot read /nonexistent"),
        (["--ledger", "slite"], "--ledger"),
        (["--ray-address", "auto"], "ray_address needs --backend ray"),
        (["--replicas", "1:2"], "replicas needs --backend ray"),
        (["--backend", "ray", "--replicas", "3:2"], "setting replicas: is not MIN:MAX"),
        (["--backend", "ray", "--device", "cuda:1"], "Ray chooses"),
        (["--backend", "ray", "--replicas", "0:2"], "setting replicas: is not MIN:MAX"),
    ],
)
def test_bad_settings(arguments: list[str], line: str) -> None:
    """A setting that cannot be is one line and code 2, on standard error."""
    done = start("serve", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("stderr", ["2> /dev/full", "2>&-", "2> >(true)"])
def test_bad_settings_that_nobody_reads(stderr: str) -> None:
    """The code is 2 also where the line cannot be written."""
    shell = ["bash", "-c", f'"$@" {stderr}', "bash", *command("serve", "--port", "x")]
    assert subprocess.run(shell, timeout=60).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["usage", "migrate"],
        ["usage", "export"],
        ["usage", "prune", "--before", "2026-01-01"],
    ],
)
def test_plain_install(arguments: list[str]) -> None:
    """Where only the client is installed, a command names the extra that it needs, and it is one of pyproject's."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "server")}
    words = [sys.executable, "-S", "-m", "kleinserve", *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "kleinserve: pydantic is not installed: pip install 'klein-serve[server]'\n"


def test_without_ray() -> None:
    """`--backend ray` where Ray is not installed is one line that names the extra, and code 2."""
    program = "import sys; sys.modules['ray'] = None; from kleinserve.__main__ import main; main()"
    words = [sys.executable, "-c", program, "serve", "--backend", "ray", "--ledger", "none"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "kleinserve: ray is not installed: pip install 'klein-serve[ray]'\n"


def test_extras_exist() -> None:
    """Each extra that a command may name is in pyproject.toml."""
    import tomllib

    file = Path(__file__).parents[1] / "pyproject.toml"
    assert {"server", *EXTRAS.values()} <= set(tomllib.loads(file.read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("arguments", [[], ["serve", "--prot", "1"], ["usage"], ["usage", "prune"], ["envoy-config"]])
def test_bad_arguments(arguments: list[str]) -> None:
    """Arguments that are unknown or missing are code 2 with the usage."""
    done = start(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: kleinserve")


COMMANDS = """
def main(*given): print(*given, flush=True); return 0
export = prune = migrate = main
"""


@pytest.mark.parametrize(
    ("arguments", "room", "printed"),
    [
        (["token", "web"], "identity.tokens", "web"),
        (["usage", "export"], "usage.commands", "sqlite  False"),
        (
            ["usage", "export", "--ledger", "none", "--after", "7", "--follow"],
            "usage.commands",
            "none 7 True",
        ),
        (["usage", "prune", "--before", "2026-01-31"], "usage.commands", "sqlite 2026-01-31"),
        (["usage", "migrate", "--ledger", "sqlite:////x"], "usage.commands", "sqlite:////x"),
        (
            ["envoy-config", "--replica", "a:1", "--replica", "b:2", "--port", "3"],
            "web.envoy",
            "['a:1', 'b:2'] 3 None None []",
        ),
    ],
)
def test_commands(arguments: list[str], room: str, printed: str) -> None:
    """Each command calls its room with what it was given."""
    parent, name = room.split(".")
    plant = f"import kleinserve.{parent}\nkleinserve.{parent}.{name} = sys.modules['kleinserve.{room}'] = app"
    done = start(*arguments, run=COMMANDS, before=plant)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed + "\n", "")


def test_a_reader_that_has_enough() -> None:
    """`kleinserve usage export | head` ends without a traceback."""
    export = "def export(ledger, after, follow):\n  while True: print('x' * 1000)"
    plant = "import kleinserve.usage\nkleinserve.usage.commands = sys.modules['kleinserve.usage.commands'] = app"
    words = command("usage", "export", run=export, before=plant)
    shell = ["bash", "-c", '"$@" | head -n 1; exit ${PIPESTATUS[0]}', "bash", *words]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "x" * 1000 + "\n", "")


def test_sockets_never_become_standard_streams() -> None:
    """With files 0, 1 and 2 closed a socket gets another number, and nothing is written to it."""
    run = """
import os, socket, sys, structlog
def run(config, logs):
    a, b = socket.socketpair()
    structlog.get_logger().info("x"); logs.announce("x"); print("x"); print("x", file=sys.stderr)
    os.system("echo x >&2")
    b.setblocking(False)
    try: b.recv(1)
    except BlockingIOError: return 40 + min(a.fileno(), b.fileno())
"""
    shell = ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command("serve", run=run)]
    assert subprocess.run(shell, timeout=60).returncode > 42


def test_an_end_with_threads() -> None:
    """Threads that still run, daemons or not, neither delay nor change the exit code."""
    run = """
import threading, time
def run(config, logs):
    for is_daemon in (False, True): threading.Thread(target=time.sleep, args=(1000,), daemon=is_daemon).start()
    return 5
"""
    assert start("serve", run=run).returncode == 5


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
@pytest.mark.parametrize("home", [{}, {"HOME": "/"}])
def test_a_user_without_name_or_home(home: dict[str, str]) -> None:
    """A user that is a bare number starts to serve: with a home, a cache and a name for those who ask."""
    run = """
import asyncio, getpass, os, pathlib, platformdirs, structlog
async def works():
    for path in (platformdirs.user_data_path, platformdirs.user_cache_path):
        (path("k", ensure_exists=True) / "file").write_text("x")
    return getpass.getuser() == "uid12345" and pathlib.Path.home().is_dir()
def run(config, logs):
    logs.announce(f"works {asyncio.run(works())}")
    return 0
"""
    words = command("serve", run=run)
    script = f"import sys; sys.argv = ['-c', *{words[3:]!r}]\n{words[2]}"
    assert as_number(script, **home) == "works True\n"
