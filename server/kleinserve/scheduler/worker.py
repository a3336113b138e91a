"""A thread of the engine's: what must be done on it before it serves, then turns for as long as there are any."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import structlog

from kleinserve.scheduler.queue import Loop, Queue

T = TypeVar("T")

_LOOK_SECONDS = 1.0  # ranks change with time alone, too

log = structlog.get_logger()


class Worker:
    """Serves one loop. Nobody waits for it longer than asked, nor does the process when it ends."""

    def __init__(self, loop: Loop, queue: Queue, died: Callable[[BaseException], None]):
        self._loop, self._queue, self._died = loop, queue, died
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=loop.value, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns, called on this thread, which does not serve yet. Raises what it raises."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(run)
        result: T = future.result()
        return result

    def serve(self, turn: Callable[[], bool]) -> None:
        """From now on take turns, until the queue is closed."""
        self._calls.put(lambda: self._serve(turn))
        self._calls.put(None)

    def join(self, seconds: float) -> bool:
        """Wait until the thread has ended, for so long at most; whether it has."""
        self._calls.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _serve(self, turn: Callable[[], bool]) -> None:
        try:
            while not self._queue.is_closed:
                seen = self._queue.changes(self._loop)
                if not turn():
                    self._queue.sleep(self._loop, seen, _LOOK_SECONDS)
        except BaseException as error:
            log.exception("engine died", thread=self._loop.value)
            self._died(error)
