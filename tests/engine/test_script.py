"""TorchScript in place of Python: equal, failing alike, without the interpreter. The step's own: test_denoise.py."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from kleinserve.engine import memory
from kleinserve.engine.script import scripted
from kleinserve.errors import AcceleratorOutOfMemory
from torch import Tensor

CALLS = 100
INTERVAL = 0.01


def many(values: Tensor, calls: int) -> Tensor:
    """As many calls of torch's."""
    for _ in range(calls):
        values = values + 1
    return values


def much(numbers: int) -> Tensor:
    return torch.empty(numbers)


@contextmanager
def busy() -> Iterator[None]:
    """Beside a thread that gives the interpreter away every 10 ms at most."""
    given, is_begun, is_over = sys.getswitchinterval(), threading.Event(), threading.Event()

    def spin() -> None:
        is_begun.set()
        while not is_over.is_set():
            pass

    thread = threading.Thread(target=spin)
    sys.setswitchinterval(INTERVAL)
    thread.start()
    is_begun.wait()
    try:
        yield
    finally:
        sys.setswitchinterval(given)
        is_over.set()
        thread.join()


def test_it_leaves_the_interpreter_to_others() -> None:
    """Called one by one a hundred calls wait a hundred times for their turn, as TorchScript once or twice."""
    values, seconds = torch.zeros(3), []
    with busy():
        for function in (many, scripted(many)):
            started = time.monotonic()
            assert function(values, CALLS).tolist() == [CALLS] * 3
            seconds.append(time.monotonic() - started)
    assert seconds[1] < 0.25 * seconds[0]


def test_a_shortage_has_the_same_name() -> None:
    """TorchScript wraps what torch says; it is found all the same."""
    with pytest.raises(AcceleratorOutOfMemory), memory.reported():
        scripted(much)(2**50)


def test_without_torchscript_the_function_runs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a torch that has given it up."""
    monkeypatch.delattr(torch.jit, "script")
    assert scripted.__wrapped__(many) is many
