"""Whether one of the engine's threads hangs in a call. Knows no works."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from kleinserve.errors import AcceleratorLost

_TIMES = 10.0  # the predicted seconds
_TICK_SECONDS = 1.0
_STARVED = (0.02, 0.5)  # of a core: a process that computes, with less than it could use
_STARVED_SHARE = 0.1  # of a tick in which it was starved that counts

log = structlog.get_logger()


class Hung(AcceleratorLost):
    """A call to the engine lasts so long that it will not end."""


class Watch:
    """What one thread has under way, and for how many seconds that counted."""

    def __init__(self, name: str):
        self.name = name
        self._predicted: float | None = None
        self._counted, self._serial = 0.0, 0

    @contextmanager
    def over(self, predicted: float) -> Iterator[None]:
        """The block's call should take so many seconds."""
        self._counted, self._serial, self._predicted = 0.0, self._serial + 1, predicted
        try:
            yield
        finally:
            self._predicted = None

    def count(self, seconds: float, floor: float) -> bool:
        """Count seconds of what is under way; whether it hangs."""
        predicted = self._predicted
        if predicted is None:
            return False
        self._counted += seconds
        return self._counted > max(floor, _TIMES * predicted)


class Watchdog:
    """Looks after the watches once a second; `hung` is called once, with what to say.

    Seconds in which the process was itself stopped, or starved of the cores that it computes on, hardly count.
    """

    def __init__(
        self,
        watches: list[Watch],
        floor: float,
        hung: Callable[[Hung], None],
        *,
        computes: bool,
        clock: Callable[[], float] = time.monotonic,
        processed: Callable[[], float] = time.process_time,
    ):
        self._watches, self._floor, self._hung, self._computes = watches, floor, hung, computes
        self._clock, self._processed = clock, processed
        self._last = clock(), processed()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._last = self._clock(), self._processed()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def look(self) -> bool:
        """Count what has passed since the last look; whether anything hangs."""
        now, processed = self._clock(), self._processed()
        seconds, used = now - self._last[0], processed - self._last[1]
        self._last = now, processed
        if seconds <= 0:
            return False
        is_starved = self._computes and _STARVED[0] < used / seconds < _STARVED[1]
        counted = min(seconds, 2 * _TICK_SECONDS) * (_STARVED_SHARE if is_starved else 1.0)
        hanging = [watch for watch in self._watches if watch.count(counted, self._floor)]
        if hanging:
            names = ", ".join(watch.name for watch in hanging)
            log.error("the engine hangs", threads=names, stacks=_stacks())
            self._hung(Hung(f"a call of {names} does not end"))
        return bool(hanging)

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            if self.look():
                return


def _stacks() -> dict[str, str]:
    """Where every thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return {names.get(ident, str(ident)): "".join(traceback.format_stack(frame)) for ident, frame in frames}
