"""Build every program of clients/, run it against a live server, and print what each could do: `make interop`.

    python -m clients.interop [--target HOST:PORT [--web HOST:PORT] [--metrics HOST:PORT]] [--only LANGUAGE …]
                              [--build-only]

Without a target it starts a server of mini. With a target and no web port, Envoy's gRPC-Web filter stands before it.
It installs what is missing of Debian's packages (as root) and of npm's, and needs no other registry. A client prints a
line for each task, `NAME ok …` or `NAME FAILED …`; a task that is not told has failed. A cancel must also be counted by
the server. The exit code is 0 if all is well, else 1.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from time import monotonic, sleep

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from clients.languages import BUILD, LANGUAGES, ROOT, Language

TASKS = ("health", "capabilities", "generate", "edit", "large", "png", "cancel", "bad_field", "deadline", "smallest")
BIN = Path(sys.executable).parent
RUN_SECONDS = 300
START_SECONDS = 300
COUNT_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """Where a server answers, each as HOST:PORT; metrics may be unknown."""

    grpc: str
    web: str
    metrics: str | None

    def cancelled(self) -> float:
        """How many cancelled requests it has counted."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(r"^klein_cancelled_total{.*} (\S+)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Outcome:
    """What one language's program said: its versions, and each task's line without its name."""

    versions: str
    tasks: dict[str, str]

    def cell(self, task: str) -> str:
        return "ok" if self.tasks.get(task, "").startswith("ok") else "FAILED"


def main() -> int:
    """Build all, run all, print the table."""
    arguments = parse()
    languages = [language for language in LANGUAGES if not arguments.only or language.name in arguments.only]
    install(languages)
    generate(languages)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        broken = list(pool.map(build, languages))
    if arguments.build_only:
        print("\n".join(broken).strip() or f"built in {BUILD.relative_to(ROOT)}")
        return any(broken)
    with ExitStack() as stack:
        server = arguments.target or stack.enter_context(served())
        if isinstance(server, str):
            web = arguments.web or stack.enter_context(envoy(server))
            server = Server(server, web, arguments.metrics)
        outcomes = [
            Outcome(f"not built: {said}", {}) if said else run(language, server)
            for language, said in zip(languages, broken, strict=True)
        ]
    return report(languages, outcomes, has_metrics=server.metrics is not None)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the clients of every language against a live server.")
    parser.add_argument("--target", metavar="HOST:PORT", help="a server that runs; without it, one is started")
    parser.add_argument("--web", metavar="HOST:PORT", help="its web port; without it, Envoy stands before the target")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="its metrics port, where cancels are counted")
    parser.add_argument("--only", nargs="+", metavar="LANGUAGE", choices=[language.name for language in LANGUAGES])
    parser.add_argument("--build-only", action="store_true", help="build the programs in clients/build, and run none")
    return parser.parse_args()


def install(languages: list[Language]) -> None:
    """What is missing of Debian's packages, and npm's by the lock file."""
    missing = sorted({name for language in languages for name in language.missing()})
    if missing and os.geteuid():
        sys.exit(f"needs root, or first: apt-get install {' '.join(missing)}")
    if missing:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)
    if any(language.uses_npm for language in languages):
        npm_packages()


def npm_packages() -> None:
    """npm's packages as the lock file has them, unless they are there."""
    lock, installed = ROOT / "clients" / "package-lock.json", ROOT / "clients" / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        npm = ["npm", "ci", "--ignore-scripts", "--no-fund", "--no-audit", "--loglevel=error"]
        subprocess.run(npm, cwd=ROOT / "clients", check=True)


def generate(languages: list[Language]) -> None:
    """Make the stubs, with Debian's protoc since Debian's runtimes are of its version, and write the page's programs.

    Of google.rpc and grpc.health.v1, what a language's packages lack comes from the Python packages' descriptors.
    """
    BUILD.mkdir(exist_ok=True)
    foreign = BUILD / "foreign.binpb"
    foreign.write_bytes(descriptors().SerializeToString())
    for language in languages:
        shutil.rmtree(BUILD / "gen" / language.name, ignore_errors=True)
        buf = [f"{BIN}/buf", "generate", "--template", json.dumps(language.template())]
        subprocess.run(buf, cwd=ROOT, check=True)
        if language.lacks:
            subprocess.run([*buf, str(foreign), *(f"--path={path}" for path in language.lacks)], cwd=ROOT, check=True)
        language.write_smallest()


def descriptors() -> FileDescriptorSet:
    """google/rpc and grpc/health, with what they import."""
    found = FileDescriptorSet()
    for module in (any_pb2, duration_pb2, error_details_pb2, status_pb2, health_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    found.file[-1].name = "grpc/health/v1/health.proto"  # the Python package has it elsewhere
    return found


def build(language: Language) -> str:
    """Compile the language's programs; what its compiler said if it failed, else nothing."""
    for command in language.build():
        done = subprocess.run(command, cwd=ROOT, env=language.environment(), capture_output=True, text=True)
        if done.returncode:
            return f"{Path(command[0]).name}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return ""


def run(language: Language, server: Server) -> Outcome:
    """Run the language's nine tasks, then the smallest program of docs/CLIENTS.md."""
    before = server.cancelled() if server.metrics else 0
    address = server.web if language.is_browser else server.grpc
    said = call([*language.command(language.main), address])
    lines = [line.split(" ", 1) for line in said.splitlines() if " " in line]
    tasks = {name: rest for name, rest in lines if name in TASKS}
    outcome = Outcome(next((rest for name, rest in lines if name == "versions"), said[-2000:]), tasks)
    if server.metrics and not is_counted(server, before + 1):
        tasks["cancel"] = "FAILED the server counted no cancel"
    tasks["smallest"] = smallest(language, address)
    return outcome


def call(command: list[str], folder: Path = ROOT / "clients") -> str:
    """All that a program prints; a hanging one is ended."""
    try:
        said, pipe = subprocess.STDOUT, subprocess.PIPE
        return subprocess.run(command, cwd=folder, timeout=RUN_SECONDS, stdout=pipe, stderr=said).stdout.decode()
    except subprocess.TimeoutExpired as hung:
        return (hung.stdout or b"").decode() + f"\nhung for {RUN_SECONDS} s"


def is_counted(server: Server, count: float) -> bool:
    """Whether the server's count of cancelled requests reaches this in time."""
    until = monotonic() + COUNT_SECONDS
    while (seen := server.cancelled()) < count and monotonic() < until:
        sleep(0.1)
    return seen >= count


def smallest(language: Language, address: str) -> str:
    """Run the page's program in an empty folder: it must leave a picture, and a preview of each of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        said = call([*language.command(language.smallest), address], Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    is_right = files.pop("image.png", b"").startswith(b"\x89PNG\r\n\x1a\n") and bool(files)
    is_right &= all(name.startswith("preview-") and data.startswith(b"\xff\xd8") for name, data in files.items())
    return f"ok {len(files)} previews" if is_right else f"FAILED {sorted(files)} {said[-2000:]}"


@contextmanager
def served() -> Iterator[Server]:
    """A server of mini on free ports, with a ledger of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ports = ["--port", "0", "--metrics-port", "0", "--web-port", "0"]
        command = [sys.executable, "-m", "kleinserve", "serve", *ports, "--ledger", f"sqlite:///{folder}/usage.db"]
        with open(BUILD / "server.log", "w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout
            said = process.stdout.readline() + process.stdout.readline()
            found = re.fullmatch(r"serving on (\S+), metrics on (\S+)\nweb on (\S+)\n", said)
            if not found:
                sys.exit(f"the server did not start: see {BUILD.relative_to(ROOT)}/server.log\n{said}")
            yield Server(grpc=found[1], metrics=found[2], web=found[3])
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def envoy(target: str) -> Iterator[str]:
    """Envoy on a free port, turning gRPC-Web into gRPC for the target."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host, target_port = target.rsplit(":", 1)
    template = Template((ROOT / "clients" / "envoy.yaml").read_text())
    configuration = template.substitute(web_port=port, host=host, port=target_port)
    command = [f"{BIN}/envoy", "--config-yaml", configuration, "--use-dynamic-base-id", "--concurrency", "1"]
    with open(BUILD / "envoy.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = monotonic() + START_SECONDS
        while not is_listening(port) and monotonic() < until and process.poll() is None:
            sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_listening(port: int) -> bool:
    """Whether something on this machine accepts connections at this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def report(languages: list[Language], outcomes: list[Outcome], *, has_metrics: bool) -> int:
    """Print the table, the versions and what failed; the exit code."""
    failed = [
        f"{language.name}: {task}: {outcome.tasks.get(task, 'not told')}"
        for language, outcome in zip(languages, outcomes, strict=True)
        for task in TASKS
        if outcome.cell(task) != "ok"
    ]
    print(f"{'':14}" + "".join(f"{language.name:>9}" for language in languages))
    for task in TASKS:
        print(f"{task:14}" + "".join(f"{outcome.cell(task):>9}" for outcome in outcomes))
    for language, outcome in zip(languages, outcomes, strict=True):
        print(f"{language.name}: {outcome.versions}")
    print(*failed, sep="\n", end="\n" if failed else "")
    if not has_metrics:
        print("Whether the server counted the cancels was not asked: no --metrics.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
