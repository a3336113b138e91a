"""What the loop beside the steps does first, piece by piece (scheduler/unit.py)."""

from collections.abc import Sequence

import pytest
from kleinserve.core import Priority, Size
from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory, Cancelled, DeadlinePassed, Internal
from kleinserve.scheduler.aside import Window
from kleinserve.scheduler.work import Need

from tests.scheduler.scripted import ScriptedRender
from tests.scheduler.stage import MEGAPIXEL, QUARTER, TINY, Stage


def test_short_work_is_done_between_the_pieces_of_long_work() -> None:
    """A small picture is decoded and a prompt read before a large decode ends, which pays for itself alone."""
    stage = Stage()
    large = stage.work(MEGAPIXEL)
    stage.denoise(large)
    stage.scheduler.aside.turn()
    small = stage.work(TINY)
    stage.scheduler.aside.turn()
    while not small.render.is_begun:
        stage.scheduler.aside.turn()
    stage.scheduler.stepping.turn()
    while not small.render.is_denoised:
        stage.scheduler.stepping.turn()
    stage.aside_until_idle()
    assert stage.told.decoded == [small, large]
    assert large.decode_seconds == pytest.approx(0.8)
    assert small.decode_seconds == pytest.approx(0.8 / 256)
    assert large.at_hand_seconds == pytest.approx(0.8)


def test_work_that_is_as_long_waits() -> None:
    """What takes more than half as long does not go between, though it ranks before."""
    stage = Stage()
    large, other = stage.work(MEGAPIXEL), stage.work(Size(800, 800))
    stage.denoise(large, other)
    stage.scheduler._queue.hold([other])
    stage.scheduler.aside.turn()
    stage.scheduler._queue.release([other], Need.DECODE)
    stage.aside_until_idle()
    assert stage.told.decoded == [large, other]


def test_of_many_as_many_go_first_as_are_short_together() -> None:
    """Sixteen pictures of an eighth are not short together, four of them are: all go before the large one ends."""
    stage = Stage({"running_requests_max": 64})
    large = stage.work(MEGAPIXEL)
    stage.denoise(large)
    stage.scheduler.aside.turn()
    small = [stage.work(Size(256, 256)) for _ in range(8)]
    while not all(work.render.is_denoised for work in small):
        if not stage.scheduler.stepping.turn():
            stage.scheduler.aside.turn()
    stage.finish()
    assert set(stage.told.decoded) == {large, *small}
    assert stage.told.decoded[-1] is large
    groups = [len(renders) for name, renders in stage.engine.calls if name == "decode"]
    assert max(groups) <= 4


def test_a_decode_that_is_nearly_due_is_not_interrupted() -> None:
    """What has been decoded counts: its deadline stays near until its end, and is not given up."""
    stage = Stage()
    large = stage.work(MEGAPIXEL, deadline=1000.0)
    stage.denoise(large)
    small = stage.work(TINY)
    stage.scheduler.change(large, stage.clock() + 0.83, Priority.STANDARD)
    stage.aside_until_idle()
    assert stage.told.decoded == [large]
    stage.finish()
    assert stage.told.decoded == [large, small]


def test_what_finds_no_memory_beside_open_work_is_done_alone_after_it() -> None:
    """Memory that the open work holds makes nobody fail; nor is it tried again before that is done."""
    stage = Stage()
    large = stage.work(MEGAPIXEL)
    stage.denoise(large)
    stage.scheduler.aside.turn()
    small = stage.work(TINY)

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if not stage.told.decoded and small.render in renders:
            raise AcceleratorOutOfMemory("no room beside the other")

    stage.engine.failures["decode"] = fail
    stage.finish_steps_first()
    assert (stage.told.decoded, stage.told.failed) == ([large, small], {})
    decodes = [renders for name, renders in stage.engine.calls if name in ("decode", "tiled")]
    assert decodes == [(large.render,), (small.render,), (small.render,)]


def test_a_picture_that_finds_no_memory_alone_is_decoded_in_tiles() -> None:
    """First alone, then tiled; where that fails too, the caller hears of it."""
    stage = Stage()
    two = [stage.work(QUARTER) for _ in range(2)]
    stage.denoise(*two)

    def fail(renders: Sequence[ScriptedRender]) -> None:
        raise AcceleratorOutOfMemory("no room")

    stage.engine.failures["decode"] = fail
    stage.finish()
    assert set(stage.told.decoded) == set(two)
    asked = [(name, len(renders)) for name, renders in stage.engine.calls if name in ("decode", "tiled")]
    assert asked == [("decode", 2), ("decode", 1), ("tiled", 1), ("decode", 1), ("tiled", 1)]
    assert stage.engine.released == 3

    stage.engine.failures["tiled"] = fail
    lost = stage.work(QUARTER)
    stage.finish()
    error = stage.told.failed[lost]
    assert isinstance(error, AcceleratorOutOfMemory)
    assert "512x512" in error.message
    assert error.retry_seconds


def test_a_prompt_that_fails_in_company_fails_alone() -> None:
    """The others' prompts are read, each alone."""
    stage = Stage()
    works = [stage.work(TINY, prompt=str(i)) for i in range(3)]

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if works[1].render in renders:
            raise ValueError("a defect")

    stage.engine.failures["text"] = fail
    stage.finish()
    assert isinstance(stage.told.failed[works[1]], Internal)
    assert set(stage.told.decoded) == {works[0], works[2]}


def test_an_open_unit_that_nobody_wants_any_more_is_stopped() -> None:
    """Its next piece is not done, what it took is paid for, and the caller hears at this boundary."""
    stage = Stage()
    work = stage.work(MEGAPIXEL)
    stage.denoise(work)
    had = work.accelerator_seconds
    stage.scheduler.aside.turn()
    stage.scheduler.cancel(work)
    assert work not in stage.told.failed  # a thread has it
    assert not stage.scheduler.aside.turn()
    assert isinstance(stage.told.failed[work], Cancelled)
    assert work.accelerator_seconds == pytest.approx(had + 0.1)


def test_a_decode_whose_deadline_passes_is_stopped() -> None:
    """No piece is done for what is too late."""
    stage = Stage()
    work = stage.work(MEGAPIXEL)
    stage.denoise(work)
    stage.scheduler.aside.turn()
    stage.scheduler.change(work, stage.clock() + 0.15, Priority.STANDARD)
    stage.finish()
    assert isinstance(stage.told.failed[work], DeadlinePassed)
    assert stage.clock() - work.deadline < 0.11


def test_the_device_holds_a_bounded_number_of_works() -> None:
    """Sixty interactive requests, each with a first step as soon as it can: 32 are begun at once, no more."""
    stage = Stage()
    works = [stage.work(QUARTER, priority=Priority.INTERACTIVE) for _ in range(60)]
    most = 0
    while len(stage.told.decoded) < 60:
        assert stage.scheduler.aside.turn() or stage.scheduler.stepping.turn()
        most = max(most, stage.scheduler._queue.begun)
    assert most <= 32
    assert set(stage.told.decoded) == set(works)


def test_large_works_leave_room_for_a_small_one() -> None:
    """Of the window a quarter is kept: one that goes first is begun although many large ones are."""
    stage = Stage({"running_requests_max": 8})
    for _ in range(20):
        stage.work(Size(2048, 2048), references=1)
    stage.aside_until_idle()
    assert 1 < stage.scheduler._queue.begun <= 6
    small = stage.work(TINY)
    stage.aside_until_idle()
    assert small.render.is_begun


@pytest.mark.parametrize(
    ("works", "tokens", "is_first", "has_room"),
    [
        (0, 0, False, True),
        (23, 0, False, True),
        (24, 0, False, False),
        (24, 0, True, True),
        (32, 0, True, False),
        (1, 950, False, False),
        (1, 890, True, True),
        (1, 950, True, False),
    ],
)
def test_a_window(works: int, tokens: int, is_first: bool, has_room: bool) -> None:
    """32 works and 1000 tokens: three quarters for anyone, the rest for who goes first; nobody is too large alone."""
    assert Window(32, 1000).has_room(works, tokens, 100, is_first=is_first) is has_room
    assert Window(32, 1000).has_room(0, 0, 5000, is_first=False)


def test_a_lost_accelerator_is_nobody_s_own_failure() -> None:
    """It ends the loop."""
    stage = Stage()
    stage.work(TINY)

    def fail(renders: Sequence[ScriptedRender]) -> None:
        raise AcceleratorLost("gone")

    stage.engine.failures["text"] = fail
    with pytest.raises(AcceleratorLost):
        stage.scheduler.aside.turn()


def test_a_loop_with_nothing_to_do_says_so() -> None:
    """And asks the engine nothing."""
    stage = Stage()
    assert not stage.scheduler.aside.turn()
    assert stage.engine.calls == []
