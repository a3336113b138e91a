"""The last word, and to whom a failure belongs."""

import pytest
from kleinserve.errors import (
    AcceleratorLost,
    AcceleratorOutOfMemory,
    AlphaUnavailable,
    Cancelled,
    DeadlinePassed,
    Draining,
    Internal,
    KleinError,
)
from kleinserve.scheduler.ending import together
from kleinserve.scheduler.work import Need, Work

from tests.scheduler.stage import Stage


def test_the_first_word_is_the_last() -> None:
    """Whatever is said after it is not told."""
    stage = Stage()
    ending, work = stage.scheduler._ending, stage.work()
    ending.failed(work, Draining())
    ending.decoded(work)
    ending.failed(work, Cancelled("again"))
    assert [type(error) for error in stage.told.failed.values()] == [Draining]
    assert stage.told.decoded == []
    assert work.is_gone


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("a secret path"), Internal), (AlphaUnavailable("no background"), AlphaUnavailable)],
)
def test_a_failure_of_its_own_is_told_and_a_defect_without_its_words(error: Exception, told: type[KleinError]) -> None:
    """A caller gets the request id, nothing of the server's insides."""
    stage = Stage()
    work = stage.work()
    stage.scheduler._ending.broke(work, error)
    assert type(stage.told.failed[work]) is told
    assert "secret" not in stage.told.failed[work].message


def test_what_was_said_at_the_cancel_is_what_is_told() -> None:
    """Cancelled, where nothing was said."""
    stage = Stage()
    first, second = stage.work(), stage.work()
    stage.scheduler.cancel(first)
    stage.scheduler.cancel(second, DeadlinePassed("too late"))
    assert [type(error) for error in stage.told.failed.values()] == [Cancelled, DeadlinePassed]


def test_too_late_ends_now_or_where_a_thread_holds_it_at_its_boundary() -> None:
    """Both with the same words."""
    stage = Stage()
    late, held, early = stage.work(deadline=5.0), stage.work(deadline=5.0), stage.work(deadline=50.0)
    stage.scheduler._queue.hold([held])
    assert stage.scheduler._ending.expire([late, held, early], 6.0) == [early]
    assert list(stage.told.failed) == [late]
    (gone,) = stage.scheduler._queue.release([held], Need.STEPS)
    stage.scheduler._ending.gone(gone)
    assert [type(error) for error in stage.told.failed.values()] == [DeadlinePassed, DeadlinePassed]


def test_a_missed_deadline_makes_promises_more_careful_and_a_cancel_does_not() -> None:
    """What the caller takes back says nothing about us."""
    stage = Stage()
    safety = stage.scheduler._safety
    before = safety.factor
    stage.scheduler.cancel(stage.work(deadline=100.0))
    stage.scheduler.cancel(stage.work())
    assert safety.factor == before
    stage.scheduler.cancel(stage.work(deadline=100.0), DeadlinePassed("too late"))
    assert safety.factor > before
    missed = safety.factor
    stage.work(deadline=1000.0)
    stage.finish()
    assert safety.factor < missed


def test_together_or_each_alone() -> None:
    """All at once where that works; else each, and whoever fails alone has failed. Memory is asked for once a try."""
    stage = Stage()
    works = [stage.work() for _ in range(3)]
    tries: list[list[Work]] = []
    shortages: list[None] = []

    def do(some: list[Work]) -> None:
        tries.append(some)
        if works[1] in some:
            raise AcceleratorOutOfMemory("no room")

    assert together(do, works, stage.scheduler._ending, lambda: shortages.append(None)) == [works[0], works[2]]
    assert tries == [works, [works[0]], [works[1]], [works[2]]]
    assert len(shortages) == 2
    assert isinstance(stage.told.failed[works[1]], AcceleratorOutOfMemory)


def test_a_lost_accelerator_is_tried_with_nobody_else() -> None:
    """It is not a failure of the request's."""
    stage = Stage()
    works = [stage.work() for _ in range(3)]

    def do(some: list[Work]) -> None:
        raise AcceleratorLost("gone")

    with pytest.raises(AcceleratorLost):
        together(do, works, stage.scheduler._ending, int)
    assert stage.told.failed == {}
