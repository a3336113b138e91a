"""Which replica is next."""

from dataclasses import replace

import pytest
from kleinserve.backend.backend import Load
from kleinserve.backend.ray.board import Board

from tests.backend.ray.scripted import asked
from tests.scheduler.scripted import Clock

REPLICAS = ["a", "b", "c"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    """Replicas that have said 3, 2 and 1 seconds, and a request that takes one."""
    board = Board(clock)
    for seconds, replica in zip((3.0, 2.0, 1.0), REPLICAS, strict=True):
        board.hear(f"by {replica}", replica, Load(seconds, seconds, 0, 0))
    board.learn(asked("any"), 1.0)
    return board


def test_least_work_first(board: Board) -> None:
    """Whoever has the least predicted seconds is chosen, the others after it."""
    assert board.choose(asked("new"), REPLICAS) == ["c", "b", "a"]


def test_a_choice_counts_at_once(board: Board) -> None:
    """Requests that come before any replica has spoken again spread by what was sent, and do not all go to one."""
    chosen = [board.choose(asked(f"{number}"), REPLICAS)[0] for number in range(6)]
    assert sorted(chosen) == ["a", "b", "b", "c", "c", "c"]
    assert chosen[0] == "c"


def test_what_was_sent_counts_by_its_size(board: Board) -> None:
    """A request of twice the steps counts twice."""
    large = asked("large")
    board.choose(replace(large, options=replace(large.options, steps=2 * large.options.steps)), REPLICAS)
    assert board.choose(asked("new"), REPLICAS)[0] == "b"


def test_a_word_replaces_what_was_sent(board: Board) -> None:
    """What a replica says with a request of its own counts that request, which is then not counted twice."""
    board.choose(asked("new"), ["c"])
    board.hear("new", "c", Load(1.5, 1.5, 0, 1))
    assert board.busy_seconds == 1.5
    assert board.holder("new") == "c"


def test_work_ends_though_nobody_says_so(board: Board, clock: Clock) -> None:
    """What a replica said shrinks as time passes; a default request waits as long as where it waits least."""
    clock.now = 1.5
    assert (board.busy_seconds, board.wait_seconds) == (0.0, 0.0)
    board.hear("by c", "c", Load(4.0, 2.0, 0, 1))
    assert (board.busy_seconds, board.wait_seconds) == (0.5, 0.5)
    assert board.choose(asked("new"), REPLICAS)[0] == "b"


def test_not_where_it_was_lost(board: Board) -> None:
    """The replica that lost a request gets it again only where there is no other."""
    board.choose(asked("new"), REPLICAS)
    board.lose("new")
    assert board.choose(asked("new"), REPLICAS) == ["b", "a", "c"]
    assert board.choose(asked("new"), ["c"]) == ["c"]


def test_replicas_that_are_gone_are_forgotten(board: Board) -> None:
    """The load is that of the replicas that are there."""
    board.choose(asked("new"), ["a"])
    board.forget("new")
    assert board.busy_seconds == 3.0
    assert board.holder("new") is None


def test_a_replica_of_which_nothing_is_known(board: Board) -> None:
    """One that has just come has nothing to do."""
    assert board.choose(asked("new"), [*REPLICAS, "d"])[0] == "d"
