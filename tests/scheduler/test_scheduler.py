"""Admission, cancel, change, sums, threads and their end, on a scripted engine (scheduler/outbox.py)."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from kleinserve.config import load
from kleinserve.core import Priority
from kleinserve.errors import (
    AcceleratorLost,
    Cancelled,
    DeadlineImpossible,
    DeadlinePassed,
    DeadlineUnreachable,
    Draining,
    Internal,
)
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import Line
from kleinserve.scheduler.outbox import Outbox
from kleinserve.scheduler.scheduler import Scheduler
from kleinserve.scheduler.watch import Hung
from kleinserve.scheduler.work import Work

from tests.scheduler.scripted import Clock, ScriptedEngine, ScriptedRender
from tests.scheduler.stage import MEGAPIXEL, QUARTER, TINY, Stage, Told


def test_a_deadline_is_judged_when_it_comes() -> None:
    """Passed; too near for an idle server; too near for this queue, with a time to try again; far enough."""
    stage = Stage()
    stage.clock.now = 10.0
    with pytest.raises(DeadlinePassed):
        stage.submit(deadline=9.0)
    with pytest.raises(DeadlineImpossible):
        stage.submit(MEGAPIXEL, deadline=10.1)
    for _ in range(20):
        stage.submit(MEGAPIXEL, deadline=10_000.0)
    stage.submit(MEGAPIXEL, deadline=16.0)
    with pytest.raises(DeadlineUnreachable) as refused:
        stage.submit(MEGAPIXEL, deadline=16.1)
    assert refused.value.retry_seconds
    assert stage.submit(MEGAPIXEL, deadline=10_000.0).wait_seconds > 0
    assert stage.told.failed == {}


def test_nothing_is_left_of_a_refused_request() -> None:
    """Neither counted nor known as a caller."""
    stage = Stage()
    with pytest.raises(DeadlineImpossible):
        stage.submit(MEGAPIXEL, deadline=0.1, caller="other")
    assert stage.scheduler.waiting == 0
    assert stage.scheduler.busy_seconds == 0.0
    assert stage.scheduler._turns._accounts == {}


def test_without_calibration_or_by_setting_no_deadline_is_refused() -> None:
    """It is ended only when it has passed."""
    assert Stage(is_calibrated=False).submit(MEGAPIXEL, deadline=0.01)
    assert Stage({"deadline_admission": False}).submit(MEGAPIXEL, deadline=0.01)


def test_a_work_that_nobody_holds_is_cancelled_at_once() -> None:
    """While it waits, and between two steps; a second cancel and one after the end change nothing."""
    stage = Stage()
    waiting = stage.work()
    stage.scheduler.cancel(waiting)
    assert isinstance(stage.told.failed[waiting], Cancelled)
    stage.scheduler.cancel(waiting)
    running = stage.work()
    stage.aside_until_idle()
    stage.scheduler.stepping.turn()
    stage.scheduler.cancel(running, Draining())
    assert isinstance(stage.told.failed[running], Draining)
    done = stage.work()
    stage.finish()
    stage.scheduler.cancel(done)
    assert stage.told.decoded == [done]
    assert (stage.scheduler.waiting, stage.scheduler.running) == (0, 0)


def test_sums_follow_what_is_done() -> None:
    """Busy seconds are all works' shares; waiting and running what they say; in the end all are nothing."""
    stage = Stage()
    works = [stage.work(QUARTER) for _ in range(5)]
    queue, forecast = stage.scheduler._queue, stage.scheduler._forecast

    def added() -> float:
        shares = [forecast.claim(work).share for work in queue.works()]
        return sum(share.stepping + share.beside for share in shares)

    assert (stage.scheduler.waiting, stage.scheduler.running) == (5, 0)
    while stage.scheduler.aside.turn() or stage.scheduler.stepping.turn():
        assert stage.scheduler.busy_seconds == pytest.approx(added())
        started = sum(work.started is not None for work in queue.works())
        assert (stage.scheduler.waiting, stage.scheduler.running) == (len(queue.works()) - started, started)
    assert set(stage.told.decoded) == set(works)
    assert (stage.scheduler.waiting, stage.scheduler.running, stage.scheduler.busy_seconds) == (0, 0, 0.0)


def test_sums_follow_a_machine_that_becomes_slower() -> None:
    """What waits takes longer by the new measure."""
    stage = Stage()
    for _ in range(3):
        stage.work(QUARTER)
    before = stage.scheduler.busy_seconds
    for _ in range(30):
        stage.clock.now += 1.0
        stage.scheduler._forecast.observe("step", 1000.0, 0.22)
    assert stage.scheduler.busy_seconds > 1.2 * before


def test_the_wait_for_those_who_have_not_come_grows_with_the_queue() -> None:
    """An idle server lets them in at once; it is looked at anew after a second."""
    stage = Stage()
    assert stage.scheduler.wait_seconds == 0.0
    for _ in range(10):
        stage.work(TINY)
    assert stage.scheduler.wait_seconds == 0.0
    stage.clock.now += 1.0
    assert stage.scheduler.wait_seconds > 0.0
    assert stage.scheduler.waiting == 10


def test_before_the_start_nothing_is_known_and_nothing_breaks(engine: ScriptedEngine) -> None:
    """Whoever looks at the load meanwhile sees none."""
    scheduler = Scheduler(engine, load({}), Metrics(), Told().outbox())
    assert (scheduler.wait_seconds, scheduler.busy_seconds, scheduler.waiting, scheduler.running) == (0.0, 0.0, 0, 0)
    assert scheduler.positions() == []
    assert scheduler.close(0.0)


def test_another_priority_changes_the_order() -> None:
    """The last of three that waits is the first to be finished once it is interactive."""
    stage = Stage()
    works = [stage.work(MEGAPIXEL) for _ in range(3)]
    stage.scheduler.change(works[2], None, Priority.INTERACTIVE)
    stage.finish()
    assert stage.told.decoded[0] is works[2]


def test_positions_are_those_of_the_policy() -> None:
    """The shorter one is before the longer one, which waits for it."""
    stage = Stage()
    long, short = stage.work(MEGAPIXEL), stage.work(TINY)
    stage.clock.now += 0.1
    places = stage.scheduler.positions()
    assert [(place.work, place.position) for place in places] == [(short, 0), (long, 1)]
    assert places[1].wait_seconds > places[0].wait_seconds == 0.0
    assert stage.scheduler.positions() == []


def test_what_was_spent_is_whole() -> None:
    """Seconds by stage, steps, and its part of the accelerator, which alone is everything."""
    stage = Stage()
    stage.clock.now = 3.0
    work = stage.work(QUARTER, references=1)
    stage.finish()
    spent = work.spent(stage.clock(), encode_seconds=0.5)
    timings = spent.timings
    assert timings.text == pytest.approx(0.02)
    assert timings.references == pytest.approx(0.1)
    assert timings.decode == pytest.approx(0.2)
    assert timings.encode == 0.5
    assert timings.queue == pytest.approx(0.0)
    assert spent.steps_run == 4
    assert spent.accelerator_microseconds == pytest.approx(1e6 * (stage.clock() - 3.0), abs=1)


def test_a_cut_out_of_two_passes_is_stepped_and_decoded_twice() -> None:
    """On white, then edited to black; told as one."""
    stage = Stage()
    stage.engine.passes = 2
    work = stage.work(TINY)
    stage.finish()
    assert stage.names("previews") == [
        "text",
        "begin",
        *["step"] * 4,
        "decode",
        "begin_second",
        *["step"] * 4,
        "decode",
    ]
    assert stage.told.decoded == [work]
    assert [told.step for _, told in stage.told.progress] == list(range(1, 9))
    assert stage.scheduler.busy_seconds == 0.0


@contextmanager
def serving(engine: ScriptedEngine, told: Told, seconds: float = 60.0) -> Iterator[Scheduler]:
    """A started scheduler with its threads."""
    config = load({"watchdog_seconds": seconds})
    scheduler = Scheduler(engine, config, Metrics(), told.outbox())
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close(10.0)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """One whose calls take no time of ours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return ScriptedEngine(Clock(), Line(0.01, 0.0001), Line(0.0, 0.02), Line(0.0, 0.1), Line(0.0, 0.8))


def until(condition: object, seconds: float = 20.0) -> None:
    """Wait for what another thread does."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.002)


def render(engine: ScriptedEngine, **asked: int) -> ScriptedRender:
    stage = Stage()
    return engine.render(stage.submit(TINY, **asked).work.request)


def test_the_threads_serve_and_are_the_ones_that_were_warmed(engine: ScriptedEngine) -> None:
    """Forty works come back, each once; warm-up, calibration and service share two threads, one for each part."""
    threads: dict[str, set[str]] = {}
    for name in ("text", "begin", "step", "decode"):
        engine.failures[name] = lambda renders, name=name: threads.setdefault(name, set()).add(
            threading.current_thread().name
        )
    told = Told()
    with serving(engine, told) as scheduler:
        for _ in range(40):
            scheduler.submit(render(engine))
        until(lambda: len(told.decoded) == 40)
    assert threads == {"text": {"aside"}, "begin": {"aside"}, "step": {"steps"}, "decode": {"aside"}}
    assert (scheduler.waiting, scheduler.running) == (0, 0)


def test_closing_ends_the_rest_with_draining(engine: ScriptedEngine) -> None:
    """What had not ended fails; later nothing is let in."""
    told, held = Told(), threading.Event()
    with serving(engine, told) as scheduler:
        engine.failures["step"] = lambda renders: held.wait(20.0)
        works = [scheduler.submit(render(engine)).work for _ in range(3)]
        until(lambda: told.started)
        threading.Timer(0.05, held.set).start()
        assert scheduler.close(20.0)
    assert {type(told.failed[work]) for work in works} == {Draining}
    with pytest.raises(Draining):
        scheduler.submit(render(engine))


def test_closing_does_not_wait_for_a_thread_that_hangs(engine: ScriptedEngine) -> None:
    """It says so, and what the thread holds fails too."""
    told, held = Told(), threading.Event()
    with serving(engine, told) as scheduler:
        engine.failures["step"] = lambda renders: held.wait(60.0)
        work = scheduler.submit(render(engine)).work
        until(lambda: told.started)
        assert not scheduler.close(0.01)
        assert isinstance(told.failed[work], Draining)
        held.set()


def test_a_lost_accelerator_ends_everything(engine: ScriptedEngine) -> None:
    """Every work fails with INTERNAL, then it is told once that the engine died."""
    told, all_there = Told(), threading.Event()

    def fail(renders: Sequence[ScriptedRender]) -> None:
        assert all_there.wait(20.0)
        raise AcceleratorLost("gone")

    with serving(engine, told) as scheduler:
        engine.failures["step"] = fail
        works = [scheduler.submit(render(engine)).work for _ in range(3)]
        all_there.set()
        until(lambda: told.died)
    assert [type(error) for error in told.died] == [AcceleratorLost]
    assert all(isinstance(told.failed[work], Internal) for work in works)


def test_a_defect_of_ours_ends_everything(engine: ScriptedEngine) -> None:
    """What fails outside of any request's work is no request's fault."""
    told = Told()

    def broken(works: Sequence[Work]) -> None:
        raise ValueError("a defect")

    scheduler = Scheduler(engine, load({}), Metrics(), Outbox(**{**vars(told.outbox()), "started": broken}))
    scheduler.start()
    work = scheduler.submit(render(engine)).work
    until(lambda: told.died)
    assert isinstance(told.died[0], ValueError)
    assert isinstance(told.failed[work], Internal)
    assert scheduler.close(20.0)


def test_a_call_that_does_not_end_is_found(engine: ScriptedEngine) -> None:
    """What runs fails, the death is told, and closing does not wait."""
    told, held = Told(), threading.Event()
    with serving(engine, told, seconds=0.05) as scheduler:
        engine.failures["step"] = lambda renders: held.wait(60.0)
        work = scheduler.submit(render(engine)).work
        until(lambda: told.died)
        assert isinstance(told.died[0], Hung)
        assert isinstance(told.failed[work], Internal)
        assert not scheduler.close(0.01)
        held.set()


def test_a_start_that_fails_raises(engine: ScriptedEngine) -> None:
    """What the warm-up raised; the threads end."""
    engine.failures["step"] = lambda renders: (_ for _ in ()).throw(ValueError("a broken checkpoint"))
    scheduler = Scheduler(engine, load({}), Metrics(), Told().outbox())
    with pytest.raises(ValueError, match="broken checkpoint"):
        scheduler.start()
    assert scheduler.close(20.0)


def test_encoding_is_learned_from_what_it_took() -> None:
    """A work's duration counts its file once one was encoded."""
    stage = Stage()
    first = stage.submit(QUARTER)
    stage.scheduler.encoded(first.work, 3.0)
    stage.clock.now += 1.0
    stage.scheduler.encoded(first.work, 3.0)
    assert stage.submit(QUARTER).duration_seconds == pytest.approx(first.duration_seconds + 3.0, rel=0.1)
