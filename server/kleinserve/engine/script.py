"""Functions of tensors that run without the interpreter, as TorchScript. Knows no model."""

import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@cache
def scripted(function: Callable[P, T]) -> Callable[P, T]:
    """The function of tensors, numbers, lists and named tuples as TorchScript: the same calls, equal to the bit.

    Called one by one, torch's functions each have to get the interpreter back when they are done, behind an event loop
    that may hold it for 5 ms: beside a busy one a step took twice as long. As TorchScript they leave it to the other
    threads meanwhile. torch calls it deprecated, and has nothing else for this that needs no C++ compiler; where it is
    gone one day, the function itself does the same.
    """
    if not hasattr(torch.jit, "script"):
        return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled: Callable[P, T] = torch.jit.script(function)
    as_it_stands: Any = torch.jit.optimized_execution  # type: ignore[attr-defined]  # no run observes, none is slow

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with as_it_stands(False):
            return compiled(*args, **kwargs)

    return run
