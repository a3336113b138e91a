"""TorchScript in place of Python: equal, and failing alike. What a step leaves to it: test_denoise.py."""

import pytest
import torch
from kleinserve.engine import memory
from kleinserve.engine.script import scripted
from kleinserve.errors import AcceleratorOutOfMemory
from torch import Tensor

from tests.engine.counted import Counted


def many(values: Tensor, calls: int) -> Tensor:
    """As many calls of torch's."""
    for _ in range(calls):
        values = values + 1
    return values


def much(numbers: int) -> Tensor:
    return torch.empty(numbers)


@pytest.mark.parametrize(("function", "calls"), [(many, 100), (scripted(many), 0)], ids=["Python", "TorchScript"])
def test_it_leaves_the_interpreter_to_others(function: object, calls: int) -> None:
    """Each call from Python lets it go and gets it back; TorchScript's are none."""
    assert callable(function)
    values = torch.zeros(3)
    with Counted() as counted:
        made = function(values, 100)
    assert counted.calls == calls
    assert made.tolist() == [100.0] * 3


def test_a_shortage_has_the_same_name() -> None:
    """TorchScript wraps what torch says; it is found all the same."""
    with pytest.raises(AcceleratorOutOfMemory), memory.reported():
        scripted(much)(2**50)


def test_without_torchscript_the_function_runs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a torch that has given it up."""
    monkeypatch.delattr(torch.jit, "script")
    assert scripted.__wrapped__(many) is many
