"""A job tells its readers, and knows until when it is wanted."""

import pytest
from kleinserve.core import Completed, EncodedImage, Outcome, Priority, Progress, Queued, Started
from kleinserve.desk.job import Stage
from kleinserve.desk.reader import Terms
from kleinserve.errors import Cancelled, DeadlinePassed, Internal, KleinError

from tests.desk.requests import IMAGE, job


async def test_a_later_reader_begins_with_the_present_state() -> None:
    """It gets accepted, that it has started, and how far it is; past previews and positions are not repeated."""
    running = job()
    running.take(Queued(2, 1.0))
    running.take(Started(0.1))
    running.take(Progress(2, 4, 0.5))
    later = running.join(Terms(client_tag="b"), is_replay=True)
    running.deliver(IMAGE)
    events = [event async for event in later.events()]
    assert [type(event) for event in events[1:]] == [Started, Progress, EncodedImage, Completed]
    assert events[0].is_replay


async def test_stages_follow_what_the_backend_says() -> None:
    """Waiting, running, delivering, over: each is left once."""
    left: list[Stage] = []
    one = job(left)
    one.take(Started(0.1))
    one.deliver(IMAGE)
    one.end()
    one.end()
    one.fail(Cancelled("too late"))
    assert left == [Stage.WAITING, Stage.RUNNING, Stage.DELIVERING]
    assert one.outcome is Outcome.DELIVERED


async def test_its_deadline_is_the_latest_and_its_priority_the_highest() -> None:
    """One reader without a deadline lifts it for all, and so does DETACH for good."""
    wanted = job()
    early = wanted.join(Terms(deadline=5.0, priority=Priority.BATCH), is_replay=False)
    assert (wanted.deadline, wanted.priority) == (5.0, Priority.BATCH)
    late = wanted.join(Terms(deadline=9.0, priority=Priority.INTERACTIVE), is_replay=True)
    assert (wanted.deadline, wanted.priority) == (9.0, Priority.INTERACTIVE)
    wanted.readers.discard(late)
    assert wanted.deadline == 5.0
    detached = wanted.join(Terms(deadline=1.0, is_detached=True), is_replay=True)
    assert wanted.deadline is None
    wanted.readers -= {detached, early}
    assert wanted.is_detached


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Cancelled("gone"), Outcome.CANCELLED),
        (DeadlinePassed("late"), Outcome.DEADLINE),
        (Internal("ours"), Outcome.FAILED),
    ],
)
async def test_the_first_error_is_why_it_ended(error: KleinError, outcome: Outcome) -> None:
    """What comes after it changes nothing."""
    ended = job()
    ended.fail(error)
    ended.fail(Internal("later"))
    assert (ended.error, ended.outcome, ended.stage) == (error, outcome, Stage.OVER)
