"""Kept results stay within their bounds, and nobody's attack costs another an image not fetched yet."""

from dataclasses import replace

import pytest
from kleinserve.desk.job import Job
from kleinserve.desk.kept import Kept, Shelf
from kleinserve.errors import QueueFull

from tests.desk.requests import IMAGE, job
from tests.desk.stage import never
from tests.scheduler.scripted import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def evicted() -> list[Kept]:
    return []


@pytest.fixture
def shelf(clock: Clock, evicted: list[Kept]) -> Shelf:
    return Shelf(800, 60.0, clock, never, evicted.append)  # 100 bytes for each caller


def finished(size: int) -> Job:
    made = job()
    made.image = replace(IMAGE, data=bytes(size))
    return made


def test_a_caller_has_an_eighth(shelf: Shelf, evicted: list[Kept]) -> None:
    """Its own oldest makes room for its newest; what is larger than its share is not kept at all."""
    first, second = (shelf.keep("a", finished(60), None) for _ in range(2))
    assert evicted == [first]
    assert shelf.keep("a", finished(101), None) is None
    assert (shelf.bytes, len(shelf)) == (60, 1)
    assert second is not None


def test_delivered_ones_go_first(shelf: Shelf, evicted: list[Kept]) -> None:
    """Though it is younger, what was fetched makes room before what was not."""
    old, young = (shelf.keep("a", finished(40), None) for _ in range(2))
    assert old is not None
    assert young is not None
    shelf.deliver(young)
    shelf.keep("a", finished(40), None)
    assert evicted == [young]


def test_an_attack_evicts_nothing_that_others_have_not_fetched(shelf: Shelf, evicted: list[Kept]) -> None:
    """Eight callers fill the shelf; a ninth finds room only in what was delivered, and otherwise is not kept."""
    theirs = [shelf.keep(f"caller {i}", finished(100), None) for i in range(8)]
    assert shelf.keep("attacker", finished(100), None) is None
    assert evicted == []
    assert theirs[3] is not None
    shelf.deliver(theirs[3])
    assert shelf.keep("attacker", finished(100), None) is not None
    assert evicted == [theirs[3]]


def test_a_reservation_costs_nobody_an_image(shelf: Shelf, evicted: list[Kept]) -> None:
    """Where what is not fetched leaves no room it is QUEUE_FULL; its own image then takes the reserved place."""
    shelf.keep("a", finished(50), None)
    with pytest.raises(QueueFull, match="60 bytes do not fit"):
        shelf.reserve("a", job(), 60)
    detached = finished(30)
    reserved = shelf.reserve("a", detached, 50)
    assert shelf.bytes == 100
    assert shelf.keep("a", detached, reserved) is not None
    assert (shelf.bytes, evicted) == (80, [])


def test_time_ends_what_is_kept_but_no_reservation(shelf: Shelf, clock: Clock, evicted: list[Kept]) -> None:
    """After its seconds a result goes; a job that still runs keeps its place."""
    kept = shelf.keep("a", finished(10), None)
    shelf.reserve("b", job(), 10)
    clock.now = 60.0
    shelf.expire()
    assert evicted == [kept]
    assert (shelf.bytes, len(shelf)) == (10, 0)
