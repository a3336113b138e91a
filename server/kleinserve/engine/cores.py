"""The CPU's cores, divided between the threads that compute at the same time. Knows no work, only how many do it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_OTHER = -1  # no thread has this identity


class Cores:
    """`threads` of torch for whoever computes alone, an equal part of them for each of several.

    torch keeps its number of threads per calling thread. Left at one number for all, two threads that compute at once
    ask for twice the cores there are, and then wait for each other at every operation.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._busy: set[int] = set()  # threads
        self._lock = threading.Lock()

    @contextmanager
    def crowded(self) -> Iterator[None]:
        """As if another thread computed too, for the block."""
        with self._lock:
            self._busy.add(_OTHER)
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(_OTHER)

    @contextmanager
    def share(self) -> Iterator[None]:
        """Compute for the block with this thread's part, as it is when the outermost block begins."""
        with self._computing(lambda: self.threads // len(self._busy)):
            yield

    @contextmanager
    def same(self) -> Iterator[None]:
        """Compute for the block with half of the threads, whoever else computes: what is kept is always the same."""
        with self._computing(lambda: self.threads // 2):
            yield

    def once(self, function: Callable[[], T]) -> Callable[[], T]:
        """The function's result, computed when it is first asked for, by whoever asks: on one core, beside all others.

        For what is small: nobody else has fewer threads for it.
        """
        lock, results = threading.Lock(), list[T]()

        def result() -> T:
            with lock:
                if not results:
                    if threading.get_ident() not in self._busy:
                        torch.set_num_threads(1)
                    results.append(function())
                return results[0]

        return result

    @contextmanager
    def _computing(self, part: Callable[[], int]) -> Iterator[None]:
        me = threading.get_ident()
        if me in self._busy:
            yield
            return
        with self._lock:
            self._busy.add(me)
            threads = max(1, part())
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(me)
