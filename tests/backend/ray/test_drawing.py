"""What becomes of a request whose replica is lost, refuses, or is told to stop."""

import asyncio

import pytest
from kleinserve.backend.ray import drawing as module
from kleinserve.backend.ray.drawing import Drawing
from kleinserve.core import (
    AlphaMethod,
    BackendEvent,
    EncodedImage,
    Failed,
    Finished,
    ImageFormat,
    Preview,
    PreviewFormat,
    Priority,
    Progress,
    Queued,
    Size,
    Spent,
    Started,
)
from kleinserve.errors import Cancelled, DeadlineUnreachable, Draining, NotReady

from tests.backend.ray.scripted import ADMITTED, Handle, Word, asked

FINISHED = Finished(
    EncodedImage(ImageFormat.PNG, Size(64, 64), AlphaMethod.OPAQUE, b"image", b"digest"), Spent(steps_run=4)
)
DIED = ConnectionError("the actor died")


def progress(step: int) -> Progress:
    return Progress(step, 4, 1.0)


def preview(step: int) -> Preview:
    return Preview(step, 4, PreviewFormat.JPEG, 8, 8, 3, b"picture")


async def drawn(handle: Handle, seconds_left: float | None = None) -> list[BackendEvent]:
    """What the caller is told of a request, to its end."""
    events: list[BackendEvent] = []
    drawing = Drawing(handle, asked("new"), seconds_left, events.append)
    await drawing.begin()
    await drawing.follow()
    return events


async def test_undisturbed() -> None:
    """All that a replica tells arrives, in order."""
    words: list[Word] = [Queued(1, 2.0), Started(0.1), progress(1), preview(1), progress(2), FINISHED]
    assert await drawn(Handle([ADMITTED, *words])) == words


async def test_a_lost_replica_is_not_noticed() -> None:
    """Another one makes the same request, and nothing that the caller was told is told again."""
    first: list[Word] = [ADMITTED, Started(0.1), progress(1), preview(1), progress(2), DIED]
    second: list[Word] = [ADMITTED, Queued(0, 1.0), Started(0.2)]
    second += [word for step in (1, 2, 3, 4) for word in (progress(step), preview(step))]
    handle = Handle(first, [*second, FINISHED])
    told = await drawn(handle, 60.0)
    # The preview of step 2 was lost with the replica.
    assert told[:4] == [Started(0.1), progress(1), preview(1), progress(2)]
    assert told[4:] == [preview(2), progress(3), preview(3), progress(4), preview(4), FINISHED]
    (one, seconds), (other, fewer) = handle.drawn
    assert one == other
    assert seconds is not None
    assert fewer is not None
    assert fewer < seconds <= 60.0


async def test_lost_while_it_waits() -> None:
    """A request that had not begun is told its new position."""
    told = await drawn(Handle([ADMITTED, Queued(3, 1.0), DIED], [ADMITTED, Queued(0, 1.0), Started(0.1), FINISHED]))
    assert told == [Queued(3, 1.0), Queued(0, 1.0), Started(0.1), FINISHED]


async def test_a_replica_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing for long counts as lost, and should it come back it is told to stop."""
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
    handle = Handle([ADMITTED, progress(1)], [ADMITTED, progress(1), progress(2), FINISHED])
    assert await drawn(handle) == [progress(1), progress(2), FINISHED]
    assert handle.streams[0].is_cancelled.is_set()


@pytest.mark.parametrize("lost", [DIED, Draining()])
async def test_lost_before_it_is_admitted(lost: Word) -> None:
    """A replica that dies, or is about to end, as the request arrives is not noticed either."""
    assert await drawn(Handle([lost], [ADMITTED, FINISHED])) == [FINISHED]


async def test_lost_twice() -> None:
    """After the second loss the caller is to try again, and what is known to have been spent is recorded."""
    (begun, last) = await drawn(Handle([ADMITTED, progress(3), DIED], [ADMITTED, DIED]))
    assert begun == progress(3)
    assert isinstance(last, Failed)
    assert (last.error.status, last.error.retry_seconds) == ("UNAVAILABLE", 2.0)
    assert last.spent.steps_run == 3
    with pytest.raises(NotReady):
        await drawn(Handle([DIED], [DIED]))


async def test_a_refusal_is_the_callers() -> None:
    """What refuses a request is raised, by the second replica too; no other one is asked."""
    refused = DeadlineUnreachable("too many", retry_seconds=3.0)
    with pytest.raises(DeadlineUnreachable):
        await drawn(Handle([refused]))
    told = await drawn(Handle([ADMITTED, DIED], [refused]))
    assert told == [Failed(refused, told[0].spent)]  # type: ignore[union-attr]


async def test_cancelled() -> None:
    """The replica is told, and its last word, with what was spent, is the caller's."""
    handle, events = Handle([ADMITTED, Started(0.1)]), list[BackendEvent]()
    drawing = Drawing(handle, asked("new"), None, events.append)
    await drawing.begin()
    following = asyncio.create_task(drawing.follow())
    await drawing.cancel()
    assert handle.said == [("new",)]
    assert not handle.streams[0].is_cancelled.is_set()
    handle.streams[0].cancel()  # it dies before it can say so
    await following
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, Cancelled)
    assert len(handle.drawn) == 1


async def test_cancelled_at_a_replica_that_cannot_be_told() -> None:
    """The stream to it is closed."""

    async def fail() -> None:
        raise ConnectionError

    handle, events = Handle([ADMITTED]), list[BackendEvent]()
    handle.on_cancel = fail
    drawing = Drawing(handle, asked("new"), None, events.append)
    await drawing.begin()
    following = asyncio.create_task(drawing.follow())
    await drawing.cancel()
    await following
    assert [type(event.error) for event in events if isinstance(event, Failed)] == [Cancelled]


async def test_changed() -> None:
    """A new deadline and priority reach the replica, and the next one if it is lost."""
    handle = Handle([ADMITTED], [ADMITTED, FINISHED])
    drawing = Drawing(handle, asked("new"), 5.0, lambda event: None)
    await drawing.begin()
    await drawing.change(None, Priority.INTERACTIVE)
    handle.streams[0].cancel()
    await drawing.follow()
    assert handle.said == [("new", None, Priority.INTERACTIVE)]
    request, seconds_left = handle.drawn[1]
    assert (request.options.priority, seconds_left) == (Priority.INTERACTIVE, None)


async def test_drained() -> None:
    """Where the front ends first, the request ends with DRAINING and the stream is closed."""
    handle, events = Handle([ADMITTED]), list[BackendEvent]()
    drawing = Drawing(handle, asked("new"), None, events.append)
    await drawing.begin()
    following = asyncio.create_task(drawing.follow())
    await asyncio.sleep(0)
    following.cancel()
    await following
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, Draining)
    assert handle.streams[0].is_cancelled.is_set()
