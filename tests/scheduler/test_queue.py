"""Who holds a work, and what is counted."""

import gc
import threading
import weakref

import pytest
from kleinserve.scheduler.cost import Share
from kleinserve.scheduler.queue import Loop, Queue
from kleinserve.scheduler.work import Need, Work

from tests.scheduler.stage import Stage


@pytest.fixture
def stage() -> Stage:
    return Stage()


def fresh(stage: Stage) -> Work:
    """A work that is in no queue yet."""
    return stage.scheduler._work(stage.engine.render(stage.work().request), None, None)


def queued(stage: Stage, count: int) -> tuple[Queue, list[Work]]:
    """Works of one second of steps and two beside them each."""
    queue = Queue(lambda work: Share(1.0, 2.0))
    works = [fresh(stage) for _ in range(count)]
    for work in works:
        queue.put(work)
    return queue, works


def test_a_work_is_held_by_one_thread_at_a_time(stage: Stage) -> None:
    """Whoever chose it too gets the rest; given back it can be held again."""
    queue, (first, second) = queued(stage, 2)
    assert queue.hold([first]) == [first]
    assert queue.hold([first, second]) == [second]
    assert queue.release([first], Need.STEPS) == []
    assert queue.ready() == [first]
    assert queue.hold([first]) == [first]
    assert queue.ready() == []


def test_of_a_gone_work_whoever_holds_it_hears(stage: Stage) -> None:
    """One that nobody holds may be ended at once; another one is told to its holder when it is given back."""
    queue, (free, held) = queued(stage, 2)
    queue.hold([held])
    assert queue.let_go(free)
    assert not queue.let_go(held)
    assert queue.hold([free]) == []
    assert queue.release([held], Need.STEPS) == [held]


def test_only_the_first_has_the_last_word(stage: Stage) -> None:
    """Eight threads end the same works: each work is ended once."""
    queue, works = queued(stage, 200)
    ended: list[Work] = []
    threads = [threading.Thread(target=lambda: ended.extend(w for w in works if queue.end(w))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(id, ended)) == sorted(map(id, works))
    assert (queue.waiting, queue.total) == (0, Share(0.0, 0.0))


def test_counts_and_sums(stage: Stage) -> None:
    """Waiting until the first step, running from then on; the device holds what is begun; shares add up."""
    queue, works = queued(stage, 3)
    assert (queue.waiting, queue.running, queue.begun, queue.tokens) == (3, 0, 0, 0)
    assert queue.total == Share(3.0, 6.0)
    queue.hold(works[:2])
    queue.release(works[:2], Need.STEPS)
    assert (queue.waiting, queue.begun, queue.tokens) == (3, 2, 2 * works[0].demand.tokens)
    assert queue.start(works[:2], 1.0) == works[:2]
    assert queue.start(works[:2], 2.0) == []
    assert (queue.waiting, queue.running) == (1, 2)
    queue.end(works[0])
    assert (queue.waiting, queue.running, queue.begun, queue.total) == (1, 1, 1, Share(2.0, 4.0))
    queue.hold([works[2]])
    assert queue.begun == 2
    queue.release([works[2]], Need.TEXT)
    assert (queue.begun, queue.tokens) == (1, works[1].demand.tokens)
    assert queue.works() == works[1:]


def test_a_recount_takes_every_share_anew(stage: Stage) -> None:
    """As when the machine became slower."""
    share = Share(1.0, 1.0)
    queue = Queue(lambda work: share)
    for _ in range(3):
        queue.put(fresh(stage))
    share = Share(2.0, 0.5)
    assert queue.total == Share(3.0, 3.0)
    queue.recount()
    assert queue.total == Share(6.0, 1.5)


def test_who_came_since_the_last_look_is_told_once(stage: Stage) -> None:
    """All are told whenever all are asked for."""
    queue, works = queued(stage, 2)
    assert queue.take_waiting(fresh_only=True) == works
    assert queue.take_waiting(fresh_only=True) == []
    third = fresh(stage)
    queue.put(third)
    queue.end(works[0])
    assert queue.take_waiting(fresh_only=False) == [works[1], third]
    assert queue.take_waiting(fresh_only=True) == []


def test_nothing_is_left_of_who_has_ended(stage: Stage) -> None:
    """Not where nobody has looked at who came, either: such a loop would hold the pixels of all that came and went."""
    queue, works = queued(stage, 2)
    left = [weakref.ref(work) for work in works]
    queue.hold(works[:1])
    while works:
        assert queue.end(works.pop())
    gc.collect()
    assert [work() for work in left] == [None, None]


def test_a_sleeping_loop_wakes_for_what_concerns_it(stage: Stage) -> None:
    """What came before it slept wakes it too: nothing is lost between looking and sleeping."""
    queue, works = queued(stage, 1)
    seen = queue.changes(Loop.STEPS)
    queue.hold(works)
    queue.release(works, Need.STEPS)
    queue.sleep(Loop.STEPS, seen, 60.0)
    seen = queue.changes(Loop.STEPS)
    threading.Timer(0.01, queue.close).start()
    queue.sleep(Loop.STEPS, seen, 60.0)
    assert queue.is_closed
    assert not queue.put(fresh(stage))
    assert queue.works() == works
