"""What the thread beside the steps does first, with the real engine and one piece of long work at hand."""

import time
from collections.abc import Iterator

import pytest
import torch
from kleinserve.config import load
from kleinserve.core import Operation, Request, Size, Usage
from kleinserve.engine import checkpoint
from kleinserve.engine.alpha import Picture
from kleinserve.engine.drawing import Drawing
from kleinserve.engine.engine import Engine
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.ends import Broken, Ends
from kleinserve.scheduler.job import Job, load_of
from kleinserve.scheduler.outlook import Outlook
from kleinserve.scheduler.policy import Turns
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.worker import Hands

DECODE_SECONDS = 3.0  # predicted of a 256² picture; what it really takes is far less, on a busy machine too


class Beside:
    """The thread beside the steps, run by the test: `finished` and `failed` are whose pictures and errors it gave."""

    def __init__(self, engine: Engine):
        self.engine, self.queue = engine, Queue(100, 1 << 30)
        self.finished: list[Job] = []
        self.failed: list[Job] = []
        cost = Cost()
        for stage, units, seconds in (("text", 1, 0.05), ("step", 1.0, 0.1), ("decode", 0.0625, DECODE_SECONDS)):
            cost.observe(stage, units, seconds)
        hands = Hands(
            started=lambda jobs: None,
            progress=lambda job, progress: None,
            preview=lambda job, preview, step: None,
            picture=lambda job, picture: self.finished.append(job),
            failed=lambda job, error: self.failed.append(job),
            died=lambda error: None,
        )
        self.ends = Ends(engine, Outlook(cost, Turns(), engine.pauses.longest), Metrics(), hands, 1 << 22, self.queue)

    def put(self, name: str, edge: int, *, is_denoised: bool) -> Job:
        request = Request(name, Operation.GENERATE, name, (), Size(edge, edge), 0, 1, 1.0)
        drawing = self.engine.drawing(request)
        job = Job(
            request, drawing, load_of(self.engine, drawing), Usage(0, 0, 0, 0, True, ""), None, 0, lambda job: None
        )
        if is_denoised:
            self.engine.begin([drawing])
            self.engine.step([drawing])
        self.queue.put(job)
        return job

    def work(self, *wanted: Job) -> None:
        """Claim these and do what they need, as the thread would."""
        jobs = self.queue.claim(lambda jobs: [job for job in jobs if job in wanted])
        self.ends.work(jobs)
        self.queue.release(jobs)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(checkpoint.find("mini"), load({"threads": 1}))


@pytest.fixture
def beside(engine: Engine) -> Iterator[Beside]:
    yield Beside(engine)
    engine.pauses.do = None


def test_short_work_is_done_in_the_pauses_of_long_work(beside: Beside) -> None:
    """A small picture is decoded and a prompt read before a large decode ends."""
    large = beside.put("large", 256, is_denoised=True)
    small = beside.put("small", 64, is_denoised=True)
    fresh = beside.put("fresh", 64, is_denoised=False)
    beside.work(large)
    assert beside.finished == [small, large]
    assert fresh.is_begun
    assert large.decode_seconds > small.decode_seconds
    assert large.worked_seconds == 0
    assert large.drawing.row is small.drawing.row is None  # whoever reads slowly holds no memory of the device


def test_work_that_is_as_long_waits(beside: Beside) -> None:
    """What takes more than half as long does not interrupt, though it ranks before."""
    large = beside.put("large", 256, is_denoised=True)
    other = beside.put("other", 208, is_denoised=True)
    beside.work(large)
    assert beside.finished == [large]
    beside.work(other)
    assert beside.finished == [large, other]


def test_of_many_as_many_go_first_as_are_short_together(beside: Beside) -> None:
    """Eight small pictures together are not short, four of them are."""
    large = beside.put("large", 256, is_denoised=True)
    small = [beside.put(f"small {i}", 64, is_denoised=True) for i in range(8)]
    beside.work(large)
    assert set(beside.finished) == {large, *small}
    assert beside.finished[-1] is large


def test_a_decode_that_is_nearly_due_is_not_interrupted(beside: Beside) -> None:
    """What has been decoded counts: its deadline stays near until its end, and is not given up."""
    large = beside.put("large", 256, is_denoised=True)
    small = beside.put("small", 64, is_denoised=True)
    large.deadline = time.monotonic() + 1.02 * DECODE_SECONDS
    beside.work(large)
    assert beside.finished == [large]
    beside.work(small)
    assert beside.finished == [large, small]


def test_what_finds_no_memory_beside_long_work_is_done_after_it(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that the interrupted work holds makes nobody fail."""
    large = beside.put("large", 256, is_denoised=True)
    small = beside.put("small", 64, is_denoised=True)
    decode, tries = beside.engine.decode, []

    def cramped(drawings: list[Drawing], *, tiled: bool = False) -> list[Picture]:
        tries.append(drawings)
        if len(tries) == 2:
            raise torch.OutOfMemoryError("no room beside the other")
        return decode(drawings, tiled=tiled)

    monkeypatch.setattr(beside.engine, "decode", cramped)
    beside.work(large)
    assert (beside.finished, beside.failed) == ([large], [])
    assert tries == [[large.drawing], [small.drawing]]  # nor is it tried again before the large one is done
    beside.work(small)
    assert beside.finished == [large, small]


def test_a_defect_in_a_pause_is_not_blamed_on_the_interrupted(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails outside of any request's work ends the thread, whether or not it interrupts other work."""
    large = beside.put("large", 256, is_denoised=True)
    beside.put("small", 64, is_denoised=True)

    def broken(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(Metrics, "ran", broken)
    with pytest.raises(Broken):
        beside.work(large)
    assert beside.failed == []
