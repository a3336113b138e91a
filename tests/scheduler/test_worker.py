"""A thread that is called, then serves."""

import threading

import pytest
from kleinserve.scheduler.cost import Share
from kleinserve.scheduler.queue import Loop, Queue
from kleinserve.scheduler.worker import Worker


def test_calls_run_on_its_thread_and_say_what_they_return_or_raise() -> None:
    """One after another, before it serves."""
    worker = Worker(Loop.STEPS, Queue(lambda work: Share(0.0, 0.0)), lambda error: None)
    assert worker.call(lambda: threading.current_thread().name) == "steps"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    assert worker.call(lambda: 2) == 2
    assert worker.join(20.0)


def test_it_takes_turns_until_the_queue_is_closed() -> None:
    """It sleeps where there is nothing to do, and wakes for a change."""
    queue, turns = Queue(lambda work: Share(0.0, 0.0)), list[int]()
    three = threading.Event()

    def turn() -> bool:
        turns.append(len(turns))
        if len(turns) == 3:
            three.set()
        return len(turns) < 3

    worker = Worker(Loop.ASIDE, queue, lambda error: None)
    worker.serve(turn)
    assert three.wait(20.0)
    queue.ring(Loop.ASIDE)
    queue.close()
    assert worker.join(20.0)
    assert len(turns) >= 3


def test_what_a_turn_raises_ends_it_and_is_told() -> None:
    """Whatever it is."""
    died: list[BaseException] = []

    def turn() -> bool:
        raise KeyError("a defect")

    worker = Worker(Loop.STEPS, Queue(lambda work: Share(0.0, 0.0)), died.append)
    worker.serve(turn)
    assert worker.join(20.0)
    assert [type(error) for error in died] == [KeyError]


def test_joining_a_thread_that_hangs_takes_no_longer_than_asked() -> None:
    """Nor does the end of the process."""
    held = threading.Event()
    worker = Worker(Loop.STEPS, Queue(lambda work: Share(0.0, 0.0)), lambda error: None)
    worker.serve(lambda: held.wait(60.0))
    assert not worker.join(0.01)
    assert worker._thread.daemon
    worker._queue.close()
    held.set()
    assert worker.join(20.0)
