"""Where a call's time went, from made-up times."""

from itertools import pairwise
from typing import cast

import pytest
from kleinserve.core import Span, Spent
from kleinserve.desk.job import Job
from kleinserve.rpc.course import course, seconds_of


class Ran:
    """A job that came to its backend at 100.5, ran there until 104 and was settled at 104.25."""

    submitted, last_word, settled = 100.5, 104.0, 104.25
    spent = Spent(
        seconds=3.5,
        spans=(
            Span("text", 1.0, 1.25, 2),
            Span("step", 1.5, 2.0, 3),
            Span("step", 2.0, 2.5, 1),
            Span("encode", 3.25, 3.5),
        ),
    )


RAN = cast(Job, Ran())


def test_whole() -> None:
    """The stages follow one another without a gap: queue before the first step, wait after it."""
    stages = course(100.0, 105.0, RAN)
    assert [(stage.stage, stage.requests) for stage in stages] == [
        ("intake", 1),
        ("queue", 1),
        ("text", 2),
        ("queue", 1),
        ("step", 3),
        ("step", 1),
        ("wait", 1),
        ("encode", 1),
        ("settle", 1),
        ("delivery", 1),
    ]
    assert all(one.end_seconds == other.start_seconds for one, other in pairwise(stages))
    assert (stages[0].start_seconds, stages[-1].end_seconds) == (0.0, 5.0)
    assert seconds_of(stages) == {
        "queue": 1.25,
        "step": 1.0,
        "wait": 0.75,
        "delivery": 0.75,
        "intake": 0.5,
        "text": 0.25,
        "encode": 0.25,
        "settle": 0.25,
    }


def test_joined_later() -> None:
    """A call that joined the job while it ran has only what happened since."""
    stages = course(102.25, 105.0, RAN)
    assert [stage.stage for stage in stages] == ["step", "step", "wait", "encode", "settle", "delivery"]
    assert stages[0] == Span("step", 0.0, 0.25, 3)


def test_left_earlier() -> None:
    """A call that ended before its job has only what happened until then."""
    assert [stage.stage for stage in course(100.0, 102.25, RAN)] == ["intake", "queue", "text", "queue", "step"]


def test_no_job() -> None:
    """A refused call was in its intake."""
    assert course(7.0, 7.5, None) == [Span("intake", 0.0, 0.5)]


@pytest.mark.parametrize("steps", [4, 50, 1000])
def test_short_gaps(steps: int) -> None:
    """However many gaps are too short to be shown, they are no hundredth of the whole."""
    long = Ran()
    each = 3.5 / steps
    long.spent = Spent(seconds=3.5, spans=tuple(Span("step", i * each, (i + 0.99) * each) for i in range(steps)))
    stages = course(100.0, 105.0, cast(Job, long))
    assert sum(seconds_of(stages).values()) == pytest.approx(5.0, rel=0.01)
