"""What the stepping loop does and tells, turn by turn."""

from collections.abc import Sequence

import pytest
from kleinserve.core import PreviewFormat, PreviewOptions
from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory, Cancelled, DeadlinePassed, Internal
from kleinserve.scheduler.stepping import Budget
from kleinserve.scheduler.work import Need

from tests.scheduler.scripted import ScriptedRender
from tests.scheduler.stage import MEGAPIXEL, QUARTER, TINY, Stage


def test_every_step_is_told_once() -> None:
    """Each work hears of each of its steps, and of a preview of each, whatever steps the others have."""
    stage = Stage()
    works = [stage.work(TINY, steps=steps) for steps in (1, 2, 4)]
    stage.denoise(*works)
    for work, steps in zip(works, (1, 2, 4), strict=True):
        progress = [(told.step, told.total_steps) for which, told in stage.told.progress if which is work]
        assert progress == [(step, steps) for step in range(1, steps + 1)]
        assert [step for which, step in stage.told.drawn if which is work] == list(range(1, steps + 1))
        assert work.steps_run == steps
        assert work.need is Need.DECODE
    assert set(stage.told.started) == set(works)
    assert len(stage.told.started) == 3
    assert works[0].max_step_requests == 3


def test_only_wanted_previews_are_drawn() -> None:
    """Every second step, and of a latent never the last."""
    stage = Stage()
    every = stage.work(TINY, preview=PreviewOptions(every_n_steps=2))
    latent = stage.work(TINY, preview=PreviewOptions(format=PreviewFormat.LATENT))
    none = stage.work(TINY, preview=PreviewOptions(disabled=True))
    stage.denoise(every, latent, none)
    assert [step for which, step in stage.told.drawn if which is every] == [2, 4]
    assert [step for which, step in stage.told.drawn if which is latent] == [1, 2, 3]
    assert none not in [which for which, _ in stage.told.drawn]


def test_a_preview_that_fails_fails_its_own_request() -> None:
    """Previews are drawn in one go; the others' are drawn again, and nobody else fails."""
    stage = Stage()
    good, bad = stage.work(TINY), stage.work(TINY)

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if bad.render in renders:
            raise ValueError("a defect")

    stage.engine.failures["previews"] = fail
    stage.finish()
    assert isinstance(stage.told.failed[bad], Internal)
    assert stage.told.decoded == [good]
    assert [step for which, step in stage.told.drawn if which is good] == [1, 2, 3, 4]


def test_a_step_is_paid_for_by_the_work_that_each_had_in_it() -> None:
    """Two share steps; the seconds of all of them are divided, none is lost."""
    stage = Stage()
    large, small = stage.work(QUARTER), stage.work(TINY)
    stage.aside_until_idle()
    had = large.accelerator_seconds, small.accelerator_seconds
    started = stage.clock()
    while stage.scheduler.stepping.turn():
        pass
    paid = large.accelerator_seconds - had[0], small.accelerator_seconds - had[1]
    assert sum(paid) == pytest.approx(stage.clock() - started)
    if large.max_step_requests == 2:
        assert paid[0] > paid[1]
    assert stage.scheduler._turns.come("anonymous").served == pytest.approx(sum(had) + sum(paid))


def test_who_goes_during_a_step_ends_after_it_and_has_paid() -> None:
    """A cancel while the step runs is told at its boundary; the others go on."""
    stage = Stage()
    gone, other = stage.work(TINY), stage.work(TINY)
    stage.aside_until_idle()
    stage.engine.failures["step"] = lambda renders: stage.scheduler.cancel(gone)
    assert stage.scheduler.stepping.turn()
    assert isinstance(stage.told.failed[gone], Cancelled)
    assert gone.steps_run == 1
    assert gone.spent(stage.clock()).accelerator_microseconds > 0
    stage.finish()
    assert stage.told.decoded == [other]


def test_a_deadline_is_looked_at_before_each_step() -> None:
    """Nothing is spent on what is too late."""
    stage = Stage()
    work = stage.work(TINY, deadline=100.0)
    stage.aside_until_idle()
    stage.clock.now = 100.0
    assert not stage.scheduler.stepping.turn()
    assert isinstance(stage.told.failed[work], DeadlinePassed)


def test_what_fails_together_is_tried_alone_and_only_what_fails_alone_fails() -> None:
    """One of three breaks every step that it is in; the two others are finished."""
    stage = Stage()
    good, bad, fine = (stage.work(TINY) for _ in range(3))

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if bad.render in renders:
            raise ValueError("a defect")

    stage.engine.failures["step"] = fail
    stage.finish()
    assert isinstance(stage.told.failed[bad], Internal)
    assert "defect" not in stage.told.failed[bad].message
    assert set(stage.told.decoded) == {good, fine}


def test_one_shortage_shrinks_the_budget_and_clean_steps_let_it_grow_back() -> None:
    """Both steps are taken, each alone; after a hundred clean steps the budget is what it was."""
    stage = Stage()
    both = [stage.work(TINY) for _ in range(2)]
    stage.aside_until_idle()

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if len(renders) > 1:
            raise AcceleratorOutOfMemory("no room")

    stage.engine.failures["step"] = fail
    stage.scheduler.stepping.turn()
    assert [work.steps_run for work in both] == [1, 1]
    assert stage.engine.released == 1
    tokens = stage.metrics.registry.get_sample_value("klein_step_tokens_max")
    assert tokens is not None
    assert tokens < 2 * 116
    del stage.engine.failures["step"]
    stage.finish()
    stage.work(TINY, steps=300)
    stage.finish()
    assert stage.metrics.registry.get_sample_value("klein_step_tokens_max") == 8192


def test_a_work_that_finds_no_room_alone_fails_and_says_when_to_try_again() -> None:
    """The others are not touched; the budget neither."""
    stage = Stage()
    large, small = stage.work(MEGAPIXEL), stage.work(TINY)

    def fail(renders: Sequence[ScriptedRender]) -> None:
        if large.render in renders:
            raise AcceleratorOutOfMemory("no room")

    stage.engine.failures["step"] = fail
    stage.finish()
    error = stage.told.failed[large]
    assert isinstance(error, AcceleratorOutOfMemory)
    assert "1024x1024 with 0 references" in error.message
    assert error.retry_seconds
    assert stage.told.decoded == [small]


def test_a_lost_accelerator_is_nobody_s_own_failure() -> None:
    """It ends the loop."""
    stage = Stage()
    stage.work(TINY)
    stage.aside_until_idle()

    def fail(renders: Sequence[ScriptedRender]) -> None:
        raise AcceleratorLost("gone")

    stage.engine.failures["step"] = fail
    with pytest.raises(AcceleratorLost):
        stage.scheduler.stepping.turn()


def test_a_budget_shrinks_below_what_failed_and_never_passes_its_limit() -> None:
    """Three quarters of what found no room; doubled after 32 clean steps, up to the limit."""
    budget = Budget(8192)
    budget.shrink(112)
    assert budget.tokens_max == 84
    for _ in range(31):
        budget.passed()
    assert budget.tokens_max == 84
    for _ in range(1000):
        budget.passed()
    assert budget.tokens_max == 8192
