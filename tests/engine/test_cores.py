"""The cores are shared by whoever computes at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from kleinserve.engine.cores import Cores


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def computing(cores: Cores) -> Iterator[None]:
    """Another thread computes for the block."""
    begun, over = threading.Event(), threading.Event()

    def compute() -> None:
        with cores.share():
            begun.set()
            assert over.wait(30.0)

    beside = threading.Thread(target=compute)
    beside.start()
    assert begun.wait(30.0)
    try:
        yield
    finally:
        over.set()
        beside.join()


@pytest.mark.parametrize(("total", "alone", "beside"), [(4, 4, 2), (3, 3, 1), (2, 2, 1), (1, 1, 1)])
def test_alone_it_has_all_and_beside_another_half(total: int, alone: int, beside: int) -> None:
    """At least one thread, whatever the number; when the other is done it has all again."""
    cores = Cores(total)
    for others, expected in ((nullcontext(), alone), (computing(cores), beside), (nullcontext(), alone)):
        with others, cores.share():
            assert torch.get_num_threads() == expected


def test_a_block_within_a_block_changes_nothing() -> None:
    """The outermost decides, and the thread counts once until it ends."""
    cores = Cores(4)
    with cores.share():
        with cores.share(), cores.same():
            assert torch.get_num_threads() == 4
        with computing(cores):
            assert torch.get_num_threads() == 4
    assert cores._busy == set()


@pytest.mark.parametrize("is_crowded", [False, True])
def test_what_is_kept_is_computed_with_the_same_threads(is_crowded: bool) -> None:
    """Half of them, whoever else computes."""
    cores = Cores(4)
    with computing(cores) if is_crowded else nullcontext(), cores.same():
        assert torch.get_num_threads() == 2


def test_crowded_is_as_if_another_computed() -> None:
    """So a warm-up can meet both numbers of threads."""
    cores = Cores(4)
    with cores.crowded(), cores.share():
        assert torch.get_num_threads() == 2
    with cores.share():
        assert torch.get_num_threads() == 4


def test_a_failure_gives_the_cores_back() -> None:
    """Whoever fails no longer computes."""
    cores = Cores(4)
    with pytest.raises(ValueError, match="a defect"), cores.share():
        raise ValueError("a defect")
    assert cores._busy == set()


def test_once_is_computed_by_whoever_asks_first_on_one_core() -> None:
    """The others have its result; who computes beside it has all the threads."""
    cores = Cores(4)
    calls: list[int] = []
    result = cores.once(lambda: calls.append(torch.get_num_threads()) or len(calls))
    found: list[int] = []
    asking = [threading.Thread(target=lambda: found.append(result())) for _ in range(3)]
    with cores.share():
        assert torch.get_num_threads() == 4
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert torch.get_num_threads() == 4
    assert calls == [1]
    assert found == [1] * 3


def test_once_within_a_block_has_the_block_s_threads() -> None:
    """Who computes already goes on as it was."""
    cores = Cores(4)
    with cores.share():
        assert cores.once(torch.get_num_threads)() == 4


def test_once_that_fails_is_tried_again_by_the_next() -> None:
    """What it raised goes to who asked."""
    cores, answers = Cores(1), iter([ZeroDivisionError(), 3])

    def compute() -> int:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    result = cores.once(compute)
    with pytest.raises(ZeroDivisionError):
        result()
    assert (result(), result()) == (3, 3)
