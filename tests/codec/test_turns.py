"""Turns share the workers by what they have cost, and each keeps its own order."""

from itertools import pairwise

import pytest
from kleinserve.codec.turns import Turns


def test_a_turn_keeps_its_order() -> None:
    """Items of one turn are taken as they came, and none when none waits."""
    turns: Turns[int] = Turns()
    for item in range(3):
        turns.add("a", item)
    assert [turns.take() for _ in range(4)] == [0, 1, 2, None]


def test_turns_alternate() -> None:
    """Of two turns that cost the same, each is taken once before the other is again, whatever waits of it."""
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3"):
        turns.add("a", item)
    for item in ("b1", "b2"):
        turns.add("b", item)
    taken = []
    while (item := turns.take()) is not None:
        taken.append(item)
        turns.end(item[0], 1.0)
    assert taken == ["a1", "b1", "a2", "b2", "a3"]


def test_a_cheap_turn_passes_a_dear_one() -> None:
    """Four quick items wait for one slow item of another turn at most, not for one each."""
    turns: Turns[str] = Turns()
    for item in ("slow1", "slow2", "slow3"):
        turns.add("slow", item)
    assert turns.take() == "slow1"
    for number in range(4):
        turns.add("quick", f"quick{number}")
    turns.end("slow", 5.0)
    for number in range(4):
        assert turns.take() == f"quick{number}"
        turns.end("quick", 0.01)
    assert turns.take() == "slow2"


def test_a_second_worker_goes_to_who_has_none() -> None:
    """While an item of a turn runs, another turn's is next, even if the first has cost nothing yet."""
    turns: Turns[str] = Turns()
    for item in ("a1", "a2"):
        turns.add("a", item)
    turns.take()
    turns.add("b", "b1")
    assert [turns.take(), turns.take()] == ["b1", "a2"]


def test_a_new_turn_saves_nothing_up() -> None:
    """Who comes late starts level with the others, and does not catch up on what they had before."""
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3"):
        turns.add("a", item)
    turns.take()
    turns.end("a", 100.0)
    for item in ("b1", "b2"):
        turns.add("b", item)
    assert turns.take() == "a2"
    turns.end("a", 1.0)
    assert turns.take() == "b1"
    turns.end("b", 2.0)
    assert turns.take() == "a3"


@pytest.mark.parametrize("names", [8, 10_000])
def test_who_stays_is_not_starved_by_those_who_come_and_go(names: int) -> None:
    """One with always something waiting has its share beside eight others, be they the same or new ones each time."""
    turns: Turns[str] = Turns()
    turns.add("stays", "stays")
    for number in range(8):
        turns.add(f"guest {number}", f"guest {number}")
    taken = []
    for number in range(8, 1000):
        taken.append(turns.take())
        assert taken[-1] is not None
        turns.end(taken[-1], 1.0 if taken[-1] == "stays" else 0.1)
        if taken[-1] == "stays":
            turns.add("stays", "stays")
        else:
            turns.add(f"guest {number % names}", f"guest {number % names}")
        turns.add("stays", "stays")
    mine = [at for at, name in enumerate(taken) if name == "stays"]
    assert len(mine) >= 10
    assert max(after - before for before, after in pairwise(mine)) < 120


def test_what_is_withdrawn_is_not_taken() -> None:
    """An item that waits can be withdrawn, one that runs cannot; a turn without either is forgotten."""
    turns: Turns[str] = Turns()
    for item in ("a1", "a2"):
        turns.add("a", item)
    assert turns.take() == "a1"
    assert turns.withdraw("a", "a2")
    assert not turns.withdraw("a", "a1")
    assert turns.take() is None
    turns.end("a", 9.0)
    assert not turns.withdraw("a", "a1")
    turns.add("b", "b1")
    assert turns.clear() == ["b1"]
    assert turns.take() is None
