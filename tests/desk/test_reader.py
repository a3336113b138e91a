"""What one stream is told, however slowly it reads."""

import pytest
from kleinserve.core import Completed, Event, Preview, Progress, Queued, Started, Timings
from kleinserve.desk.reader import Reader, Terms
from kleinserve.errors import Cancelled

from tests.desk.requests import ACCEPTED, IMAGE, USAGE, preview

COMPLETED = Completed(USAGE, Timings(), 2, 0)


async def told(reader: Reader) -> list[Event]:
    return [event async for event in reader.events()]


async def test_a_reader_that_is_late_gets_the_newest_of_each_kind() -> None:
    """Accepted and started are kept; positions, progress and previews are replaced, and what was skipped is counted."""
    reader = Reader(ACCEPTED, Terms())
    for event in (Queued(3, 1.0), Queued(1, 0.5), Started(0.2), Progress(1, 4, 1.0), preview(1), Progress(2, 4, 0.5)):
        reader.post(event)
    reader.post(preview(2))
    reader.finish(IMAGE, COMPLETED)
    events = await told(reader)
    assert [type(event).__name__ for event in events] == [
        "Accepted", "Queued", "Started", "Progress", "Preview", "EncodedImage", "Completed",
    ]  # fmt: skip
    assert events[1] == Queued(1, 0.5)
    assert events[4] == preview(2, skipped=1)
    assert isinstance(events[-1], Completed)
    assert (events[-1].previews_skipped, reader.previews_sent) == (1, 1)


async def test_previews_that_were_never_encoded_count_as_skipped() -> None:
    """What the encoder dropped, and what was replaced here, are one number."""
    reader = Reader(ACCEPTED, Terms())
    reader.post(preview(2, skipped=1))
    reader.post(preview(4, skipped=1))
    reader.finish(IMAGE, COMPLETED)
    events = await told(reader)
    seen = next(event for event in events if isinstance(event, Preview))
    assert (seen.step, seen.skipped, reader.previews_skipped) == (4, 3, 3)


async def test_a_position_is_not_told_after_the_start() -> None:
    """A position that was not taken before the job started is forgotten."""
    reader = Reader(ACCEPTED, Terms())
    reader.post(Queued(3, 1.0))
    reader.forget_position()
    reader.finish(IMAGE, COMPLETED)
    assert not any(isinstance(event, Queued) for event in await told(reader))


async def test_an_error_ends_the_stream_at_once() -> None:
    """What was not taken yet is not told any more."""
    reader = Reader(ACCEPTED, Terms())
    reader.fail(Cancelled("gone"))
    with pytest.raises(Cancelled):
        await told(reader)
    with pytest.raises(Cancelled):
        reader.check()


async def test_an_error_after_the_image_was_ready_is_no_success() -> None:
    """Cancelled by its key while the image waits to be taken: the stream ends with that, never OK without an image."""
    reader = Reader(ACCEPTED, Terms())
    reader.finish(IMAGE, COMPLETED)
    events = reader.events()
    assert await anext(events) == ACCEPTED
    reader.fail(Cancelled("by its key"))
    with pytest.raises(Cancelled):
        await anext(events)
