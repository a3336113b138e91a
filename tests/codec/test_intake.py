"""References are decoded in processes of their own, in turns, within budgets (codec/worker.py)."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from kleinserve import process
from kleinserve.codec import reference
from kleinserve.codec.intake import Intake
from kleinserve.config import Config
from kleinserve.core import Size
from kleinserve.errors import Draining, ReferenceTooLarge, ReferenceUnreadable, ReferenceUnsupported

from tests.codec.files import exif, picture, saved
from tests.codec.hostile import interlaced, many_scans

GOOD = saved(picture())
MINUTES = many_scans(5000, 24)  # many seconds of decoding, wherever the budget allows it
BAD = b"not an image"

Open = Callable[..., tuple[Intake, list[str]]]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes started intakes with these settings, and the list of outcomes that each measures."""
    intakes = []

    def start(**settings: object) -> tuple[Intake, list[str]]:
        outcomes: list[str] = []
        intake = Intake(Config(**settings), lambda outcome, seconds: outcomes.append(outcome))
        intake.start()
        intakes.append(intake)
        return intake, outcomes

    yield start
    for intake in intakes:
        intake.kill()


def workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    while not all(child.cmdline() for child in children):  # within an exec it has none yet
        time.sleep(0.001)
    return [child for child in children if "kleinserve.codec.worker" in child.cmdline()]


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (2, 2), (64, 2)])
def test_as_many_workers_as_cores(monkeypatch: pytest.MonkeyPatch, opened: Open, cores: int, count: int) -> None:
    """Two by default, and one where a cgroup's quota leaves the process one core, however many the machine has."""
    monkeypatch.setattr(process, "cores", lambda: cores)
    opened()
    assert len(workers()) == count


async def forked(parent: psutil.Process) -> psutil.Process:
    """The worker's fork, as soon as there is one: something is being decoded."""
    while not (children := parent.children()):  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.01)
    return children[0]


async def gone(process: psutil.Process) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("keep_alpha", [False, True])
async def test_pixels_and_digest_are_those_of_decoding_here(opened: Open, keep_alpha: bool) -> None:
    """What a worker gives back is what `reference.decode` gives, in order, with the digest of its content."""
    intake, outcomes = opened()
    files = [
        GOOD,
        saved(picture(1500, 1200, "RGBA")),
        saved(picture(200, 100), "JPEG", exif=exif(6)),
        saved(picture(), "WEBP"),
    ]
    found = await intake.decode("a", files, keep_alpha=keep_alpha)
    for index, (data, one) in enumerate(zip(files, found, strict=True)):
        pixels = reference.decode(index, data, keep_alpha=keep_alpha)
        assert one.pixels == pixels
        assert one.digest == hashlib.sha256(f"{pixels.size}/{pixels.channels}/".encode() + pixels.data).digest()
    assert outcomes == ["decoded"] * 4
    assert await intake.decode("a", [], keep_alpha=keep_alpha) == ()


def test_a_worker_imports_neither_torch_nor_grpc_nor_the_settings() -> None:
    """A worker knows Pillow, numpy and our codec, so that it starts quickly and stays small."""
    code = "import kleinserve.codec.worker, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    modules = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert {"PIL", "numpy"} <= modules
    assert not modules & {"torch", "grpc", "diffusers", "transformers", "pydantic", "asyncio", "imagecodecs", "scipy"}


def test_nothing_heavy_is_imported_before_the_workers_start() -> None:
    """Intake itself can be started before torch and gRPC are imported."""
    code = "import kleinserve.codec.intake, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    modules = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not modules & {"torch", "grpc", "diffusers", "transformers"}


async def test_the_first_bad_reference_is_the_one_that_is_told(opened: Open) -> None:
    """Of two bad ones the earlier is named, though the later is known first; what follows it is not waited for."""
    intake, outcomes = opened(intake_workers=2, intake_seconds_max=600)
    with pytest.raises(ReferenceTooLarge, match=r"references\[1\]"):
        await intake.decode("a", [GOOD, interlaced(6000, 1, 0), BAD, MINUTES], keep_alpha=False)
    for worker in workers():
        for fork in worker.children():
            await gone(fork)
    with pytest.raises(ReferenceUnreadable, match=r"references\[0\]"):
        await intake.decode("a", [BAD], keep_alpha=False)
    assert set(outcomes) == {"decoded", "refused"}


async def test_past_its_seconds_a_reference_is_refused(opened: Open) -> None:
    """A decoding that takes too much of the processor is ended, saying what and how much; the next one is served."""
    intake, outcomes = opened(intake_workers=1, intake_seconds_max=0.25)
    with pytest.raises(ReferenceUnsupported, match=r"references\[1\]\.image: .*0\.25 s of processor; at most 0\.25"):
        await intake.decode("a", [GOOD, MINUTES], keep_alpha=False)
    await intake.decode("a", [GOOD], keep_alpha=False)
    assert outcomes == ["decoded", "over_budget", "decoded"]


async def test_past_its_bytes_a_reference_is_refused(opened: Open) -> None:
    """A decoding that takes too much memory is ended, saying what and how much; the next one is served."""
    intake, outcomes = opened(intake_workers=1, intake_pixel_bytes_max=1, intake_seconds_max=600)
    with pytest.raises(ReferenceUnsupported, match=r"116663296 bytes of memory; at most 116663296"):
        await intake.decode("a", [interlaced(4000, 16, 6)], keep_alpha=True)
    await intake.decode("a", [GOOD], keep_alpha=False)
    assert outcomes == ["over_budget", "decoded"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
async def test_a_crash_costs_its_reference_alone(opened: Open, end: signal.Signals) -> None:
    """A decoder that crashes, or that the kernel kills, refuses its reference and no other."""
    intake, outcomes = opened(intake_workers=1, intake_seconds_max=600)
    (worker,) = workers()
    crashing = asyncio.create_task(intake.decode("a", [MINUTES], keep_alpha=False))
    waiting = asyncio.create_task(intake.decode("b", [GOOD], keep_alpha=False))
    (await forked(worker)).send_signal(end)
    with pytest.raises(ReferenceUnsupported, match=end.name):
        await crashing
    assert len(await waiting) == 1
    assert outcomes == ["crashed", "decoded"]


async def test_a_worker_that_is_killed_is_replaced(opened: Open) -> None:
    """A worker that dies with a reference in hand takes its fork along; another decodes the reference."""
    intake, outcomes = opened(intake_workers=1, intake_seconds_max=600)
    (worker,) = workers()
    decoding = asyncio.create_task(intake.decode("a", [many_scans(2000, 40)], keep_alpha=False))
    fork = await forked(worker)
    worker.kill()
    assert len(await decoding) == 1
    await gone(fork)
    assert [process.pid for process in workers()] != [worker.pid]
    assert outcomes == ["decoded"]


def test_an_event_loop_that_ends_leaves_no_socket(opened: Open) -> None:
    """A decode that its loop cancels takes its worker along."""

    async def begin() -> Intake:
        intake, _ = opened(intake_workers=1, intake_seconds_max=600)
        (worker,) = workers()
        decoding = asyncio.create_task(intake.decode("a", [MINUTES], keep_alpha=False))
        await forked(worker)
        assert not decoding.done()
        return intake

    intake = asyncio.run(begin())
    assert [worker._socket for worker in intake._workers] == [None]


async def test_idle_workers_that_are_killed_are_replaced(opened: Open) -> None:
    """Workers that die while nothing runs are noticed by the next reference, which is decoded."""
    intake, outcomes = opened(intake_workers=2)
    await intake.decode("a", [GOOD, GOOD], keep_alpha=False)
    for worker in workers():
        worker.kill()
    await intake.decode("a", [GOOD] * 4, keep_alpha=False)
    assert outcomes == ["decoded"] * 6


async def test_who_leaves_frees_the_worker(opened: Open) -> None:
    """A cancelled decoding ends at once, its waiting references with it, and the next caller is served."""
    intake, outcomes = opened(intake_workers=1, intake_seconds_max=600)
    leaving = asyncio.create_task(intake.decode("a", [MINUTES] * 4, keep_alpha=False))
    fork = await forked(workers()[0])
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await intake.decode("b", [GOOD], keep_alpha=False)
    assert not fork.is_running()
    assert outcomes == ["decoded"]


async def test_a_flood_delays_others_by_one_budget(opened: Open) -> None:
    """Ten hostile edits of one turn wait behind another's four good references, but for the one that runs."""
    intake, outcomes = opened(intake_workers=1, intake_seconds_max=0.25)
    flood = [asyncio.create_task(intake.decode("hostile", [MINUTES], keep_alpha=False)) for _ in range(10)]
    await forked(workers()[0])
    await intake.decode("good", [GOOD] * 4, keep_alpha=False)
    assert outcomes == ["over_budget", "decoded", "decoded", "decoded", "decoded"]
    for task in flood:
        task.cancel()
    assert {type(error) for error in await asyncio.gather(*flood, return_exceptions=True)} == {
        ReferenceUnsupported,
        asyncio.CancelledError,
    }


async def test_large_ones_leave_a_worker_to_others(opened: Open) -> None:
    """Of two workers one decodes large pictures, whoever sends them, so another's small one does not wait for them."""
    intake, outcomes = opened(intake_workers=2, intake_seconds_max=600)
    large = [asyncio.create_task(intake.decode(turn, [MINUTES], keep_alpha=False)) for turn in ("a", "b", "c")]
    await intake.decode("d", [GOOD], keep_alpha=False)
    await intake.decode("d", [GOOD], keep_alpha=False)
    assert outcomes == ["decoded", "decoded"]
    assert sum(len(worker.children()) for worker in workers()) == 1
    for task in large:
        task.cancel()
    await asyncio.gather(*large, return_exceptions=True)
    assert len(await intake.decode("a", [saved(picture(2100, 2100))], keep_alpha=False)) == 1


@pytest.mark.parametrize("count", [1, 2])
async def test_a_large_one_is_measured_once(opened: Open, count: int) -> None:
    """However it was told to be large, it counts as one reference that was decoded, or refused."""
    intake, outcomes = opened(intake_workers=count)
    large = saved(picture(2100, 2100), "JPEG")
    (reference,) = await intake.decode("a", [large], keep_alpha=False)
    assert reference.pixels.size == Size(1024, 1024)
    with pytest.raises(ReferenceUnreadable):
        await intake.decode("a", [large[: len(large) // 2]], keep_alpha=False)
    assert outcomes == ["decoded", "refused"]


async def test_ctrl_c_is_not_for_workers(opened: Open) -> None:
    """SIGINT and SIGTERM do not end a worker: the server drains first. It is not in the terminal's group."""
    intake, _ = opened(intake_workers=1)
    await intake.decode("a", [GOOD], keep_alpha=False)
    (worker,) = workers()
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)
    await intake.decode("a", [GOOD], keep_alpha=False)
    assert [process.pid for process in workers()] == [worker.pid]
    assert os.getpgid(worker.pid) != os.getpgid(0)


async def test_workers_yield_to_the_engine(opened: Open) -> None:
    """A worker is as nice as can be, and still gets what others leave of the cores and a little more."""
    intake, _ = opened(intake_workers=1)
    await intake.decode("a", [GOOD], keep_alpha=False)
    (worker,) = workers()
    assert worker.nice() == 19
    assert os.sched_getscheduler(worker.pid) == os.SCHED_OTHER


async def test_closing_ends_everything(opened: Open) -> None:
    """close() refuses what runs and waits with DRAINING, and what comes later; nothing of the workers is left."""
    intake, outcomes = opened(intake_workers=1, intake_seconds_max=600)
    (worker,) = workers()
    decodings = [asyncio.create_task(intake.decode("a", [MINUTES], keep_alpha=False)) for _ in range(2)]
    fork = await forked(worker)
    await intake.close()
    assert [type(error) for error in await asyncio.gather(*decodings, return_exceptions=True)] == [Draining, Draining]
    with pytest.raises(Draining):
        await intake.decode("a", [GOOD], keep_alpha=False)
    assert not workers()
    assert not fork.is_running()
    assert outcomes == []


def test_workers_end_with_the_server() -> None:
    """A server that is killed leaves no worker and no fork behind, not even in the middle of a decoding."""
    code = """
import asyncio, sys
from kleinserve.codec.intake import Intake
from kleinserve.config import Config
from kleinserve.core import Size
intake = Intake(Config(intake_workers=2, intake_seconds_max=600), lambda outcome, seconds: None)
intake.start()
asyncio.run(intake.decode("a", [sys.stdin.buffer.read()], keep_alpha=False))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as server:
        assert server.stdin is not None
        server.stdin.write(MINUTES)
        server.stdin.close()
        while len(family := psutil.Process(server.pid).children(recursive=True)) < 3:  # two workers and a fork
            assert server.poll() is None
        server.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_workers_know_no_secret(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes over a process that reads strangers' files finds no password and no token of the server's."""
    for name in ("KLEINSERVE_LEDGER", "RAY_AUTH_TOKEN", "PGPASSWORD", "HF_TOKEN", "DATABASE_URL"):
        monkeypatch.setenv(name, "s3cret")
    opened()
    for worker in workers():
        assert "s3cret" not in str(worker.environ())
    assert workers()
