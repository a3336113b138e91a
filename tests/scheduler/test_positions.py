"""Who is told a position, and how often."""

from kleinserve.scheduler.positions import Place, Positions
from kleinserve.scheduler.work import Work

from tests.scheduler.stage import Stage


def places(works: list[Work]) -> list[Place]:
    return [Place(work, position, float(position)) for position, work in enumerate(works)]


def test_everyone_hears_once_and_then_of_changes() -> None:
    """Who was told nothing yet; then nobody while nothing changes; then those that moved."""
    works = [Stage().work() for _ in range(3)]
    positions = Positions()
    assert positions.due(places(works), 1.0) == places(works)
    assert positions.due(places(works), 1.5) == []
    assert [place.work for place in positions.due(places(works[1:]), 2.0)] == works[1:]


def test_who_starts_within_a_moment_hears_nothing() -> None:
    """A work that came just now may start before its position is told."""
    work = Stage().work()
    positions = Positions()
    assert positions.due(places([work]), 0.019) == []
    assert positions.due(places([work]), 0.021) == places([work])


def test_of_many_changes_sixteen_are_told_at_once_and_nobody_waits_longer_than_five_seconds() -> None:
    """The queue moves at every look: the first sixteen hear each time, the others every five seconds."""
    stage = Stage()
    works = [stage.work() for _ in range(300)]
    positions, told = Positions(), dict.fromkeys(works, 1.0)
    positions.due(places(works), 1.0)
    now, waiting = 1.0, works
    for _ in range(40):
        now, waiting = now + 0.5, waiting[1:]
        due = positions.due(places(waiting), now)
        assert [place.work for place in due][:16] == waiting[:16]
        old = [place for place in due if now - told[place.work] >= 5.0]
        assert len(due) <= 16 + len(old)
        told |= {place.work: now for place in due}
        assert all(now - told[work] < 5.5 for work in waiting)


def test_of_those_that_no_longer_wait_nothing_is_kept() -> None:
    """The memory of what was told is that of the waiting ones."""
    works = [Stage().work() for _ in range(3)]
    positions = Positions()
    positions.due(places(works), 1.0)
    positions.due(places(works[:1]), 2.0)
    assert set(positions._told) == set(works[:1])
