"""What the process finds around it; streams and signals: test_logs.py, test_main.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kleinserve import process


def groups(root: Path, member: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A file such as /proc/self/cgroup and a tree such as /sys/fs/cgroup, as a machine would have them."""
    for name, text in files.items():
        file = root / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (root / "member").write_text(member + "\n")
    return root / "member", root / "tree"


@pytest.mark.parametrize(
    ("member", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "5000 100000"}, 1),
        ("0::/pods/one", {"pods/one/cpu.max": "max 100000", "pods/cpu.max": "200000 100000"}, 2),
        ("0::/pods/one", {"pods/one/cpu.max": "100000 50000", "pods/cpu.max": "800000 100000"}, 2),
        ("0::/../../host/path", {"cpu.max": "400000 100000"}, 4),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 64),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "500000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 5),
        (
            "4:cpuset:/x\n1:cpu:/a/b\n0::/",
            {
                "cpu/a/b/cpu.cfs_quota_us": "-1",
                "cpu/a/b/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "150000",
                "cpu/a/cpu.cfs_period_us": "100000",
                "cpuset/x/cpu.max": "100000 100000",
            },
            2,
        ),
        ("0::/", {"unified/cpu.max": "700000 100000"}, 7),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        ("0::/", {"cpu.max": "100000 0"}, 64),
        ("nonsense", {"cpu.max": "100000 100000"}, 64),
        ("0::/", {}, 64),
    ],
)
def test_cores_by_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, files: dict[str, str], expected: int
) -> None:
    """The smallest quota of the cgroups above the process counts, of either version, also in a container."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert process.cores(*groups(tmp_path, member, files)) == expected


def test_cores_without_cgroups(tmp_path: Path) -> None:
    """Where there are no cgroups affinity alone counts."""
    assert process.cores(tmp_path / "none", tmp_path) == len(os.sched_getaffinity(0))


def test_cores_by_affinity() -> None:
    """A process that may use one core counts one, and has one thread for torch."""
    script = "from kleinserve import process, config; print(process.cores(), config.Config().torch_threads)"
    first = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(["taskset", "-c", first, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "1 1\n"


def as_number(script: str, **environment: str) -> str:
    """What a process of a user prints that is a number without name, in this environment alone.

    It may read everything, for the interpreter may lie where others do not look, but write only what anybody may.
    """
    command = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    command += ["--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search"]
    command += ["--ambient-caps=-all,+dac_read_search", sys.executable, "-c", script]
    known = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


HOME = """
import getpass, os, pathlib
from kleinserve import process
folder = process.settle_home()
print(folder)
print(pathlib.Path.home() == folder, pathlib.Path("~/x").expanduser() == pathlib.Path(str(folder)) / "x")
print(getpass.getuser(), os.environ["XDG_CACHE_HOME"] == f"{folder}/.cache", oct(os.stat(folder).st_mode)[-3:])
pathlib.Path.home().joinpath("x").write_text("")
assert process.settle_home() in (None, folder)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "/"}, {"HOME": "/nonexistent"}, {"HOME": "/proc"}])
def test_a_user_without_name_or_home(home: dict[str, str]) -> None:
    """A user that is a bare number gets a name and a folder of its own for a home, the same at every start."""
    first = as_number(HOME, **home)
    folder, *said = first.splitlines()
    assert re.search(r"/kleinserve-12345$", folder)
    assert said == ["True True", "uid12345 True 700"]
    assert as_number(HOME, **home) == first


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_a_home_that_works_is_kept(tmp_path: Path) -> None:
    """A home that can be written stays, whoever the user is."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o11)
    script = "from kleinserve import process; print(process.settle_home())"
    assert as_number(script, HOME=str(tmp_path)) == "None\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_another_ones_folder_is_not_used(tmp_path: Path) -> None:
    """A folder of the expected name that another user made is a trap: a new one is made instead."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o11)
    (tmp_path / "kleinserve-12345").mkdir(mode=0o777)
    script = "from kleinserve import process; print(process.settle_home())"
    folder = Path(as_number(script, TMPDIR=str(tmp_path)).strip())
    assert folder.parent == tmp_path
    assert folder.name != "kleinserve-12345"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_nothing_can_be_written() -> None:
    """On a file system that is read-only nothing fails, and nothing is promised."""
    script = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc']\n"
    script += "from kleinserve import process; print(process.settle_home())"
    assert as_number(script) == "None\n"


@pytest.mark.parametrize(
    ("arenas", "environment", "expected"),
    [(1, {}, True), (0, {}, False), (1, {"MALLOC_ARENA_MAX": "4"}, False)],
)
def test_arenas(arenas: int, environment: dict[str, str], expected: bool) -> None:
    """glibc takes the number of arenas, unless the environment has one; then 16 threads share what it says."""
    script = f"""
import ctypes, threading
from kleinserve import process
print(process.limit_arenas({arenas}))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
barrier = threading.Barrier(16)
def take():
    barrier.wait(); libc.malloc(1000); barrier.wait()
threads = [threading.Thread(target=take) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_stats()
"""
    known = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run([sys.executable, "-c", script], env=known | environment, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"
    used = len(re.findall(r"^Arena \d+:", done.stderr, re.MULTILINE))
    assert used == 1 if expected else used > 1


@pytest.mark.parametrize(
    ("environment", "is_kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=9"}, False),
    ],
)
def test_freed_memory_is_kept(environment: dict[str, str], is_kept: bool) -> None:
    """What was freed is used again without a page fault, unless the environment tells glibc otherwise."""
    script = """
import ctypes, resource
from kleinserve import process
print(process.keep_freed())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes, size = [ctypes.c_void_p], 30 << 20
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks: libc.memset(block, 1, size)
    for block in blocks: libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
print(sum(faults() for _ in range(10)) < first)
"""
    known = {name: value for name, value in os.environ.items() if not re.match("MALLOC_|GLIBC_", name)}
    done = subprocess.run([sys.executable, "-c", script], env=known | environment, capture_output=True, text=True)
    assert done.stdout == f"{is_kept}\n{is_kept}\n", done.stderr
