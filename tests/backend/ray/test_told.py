"""What waits at a replica for a front that does not fetch it."""

from kleinserve.backend.ray.told import Box
from kleinserve.core import Failed, Preview, PreviewFormat, Progress, Queued, Spent, Started
from kleinserve.errors import Cancelled


async def test_only_the_newest_waits() -> None:
    """Of positions, progress and previews the newest stays, and a preview counts those before it."""
    box = Box()
    for step in range(1, 101):
        box.put(Queued(100 - step, 1.0))
        box.put(Progress(step, 100, 1.0))
        box.put(Preview(step, 100, PreviewFormat.JPEG, 8, 8, 3, b"picture", skipped=step % 2))
    box.put(Started(0.1))
    newest = Preview(100, 100, PreviewFormat.JPEG, 8, 8, 3, b"picture", skipped=99 + 50)
    assert await box.take() == [Queued(0, 1.0), Progress(100, 100, 1.0), newest, Started(0.1)]
    assert not box.is_last


async def test_the_last_word_ends_it() -> None:
    """It is known when the last word has been taken."""
    box, last = Box(), Failed(Cancelled("over"), Spent())
    box.put(Progress(1, 2, 1.0))
    box.put(last)
    assert await box.take() == [Progress(1, 2, 1.0), last]
    assert box.is_last
