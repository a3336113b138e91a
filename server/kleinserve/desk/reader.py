"""One stream's mailbox: what its reader has not taken yet is replaced by what is newer. On the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from kleinserve.core import Accepted, Completed, EncodedImage, Event, Preview, Priority, Progress, Queued
from kleinserve.errors import KleinError

_REPLACEABLE = (Queued, Progress, Preview)


@dataclass(frozen=True)
class Terms:
    """What one stream asks of its job. `deadline` on the event loop's clock, None: none."""

    client_tag: str = ""
    deadline: float | None = None
    is_detached: bool = False
    priority: Priority = Priority.STANDARD


class Reader:
    """Reads one job. It begins with `accepted` and the present state, and never makes the job wait.

    `first_preview`: when the first one was taken. `previews_skipped`: replaced before they were taken.
    """

    def __init__(self, accepted: Accepted, terms: Terms):
        self.terms = terms
        self.first_preview: float | None = None
        self.previews_sent = self.previews_skipped = 0
        self._skipped_since_sent = 0
        self._events: deque[Event] = deque([accepted])
        self._completed: Completed | None = None
        self._error: KleinError | None = None
        self._changed = asyncio.Event()

    def post(self, event: Event) -> None:
        """Add an event; a newer Queued, Progress or Preview takes the place of one not yet taken."""
        if isinstance(event, _REPLACEABLE):
            for old in [held for held in self._events if type(held) is type(event)]:
                self._events.remove(old)
                if isinstance(old, Preview):
                    self._skip(old)
        self._events.append(event)
        self._changed.set()

    def forget_position(self) -> None:
        """Its job has started: a position not yet taken says nothing any more."""
        for old in [held for held in self._events if isinstance(held, Queued)]:
            self._events.remove(old)

    def finish(self, image: EncodedImage, completed: Completed) -> None:
        """The image is ready: it comes after what is still to be taken, and then the end."""
        self._events.append(image)
        self._completed = completed
        self._changed.set()

    def fail(self, error: KleinError) -> None:
        """End with `error` at once."""
        self._error = error
        self._events.clear()
        self._changed.set()

    async def events(self) -> AsyncIterator[Event]:
        """The stream in contract order; the last is Completed. Raises: the error that ended the job."""
        while self._completed is None or self._events:
            self.check()
            if self._events:
                yield self._taken(self._events.popleft())
                continue
            self._changed.clear()
            await self._changed.wait()
        self.check()  # it may have ended after its image was ready, and the image is then not told
        yield replace(self._completed, previews_skipped=self.previews_skipped)

    def check(self) -> None:
        """Raise what ended the job, if something has: between the pieces of its image."""
        if self._error is not None:
            raise self._error

    def _skip(self, preview: Preview) -> None:
        self.previews_skipped += 1 + preview.skipped
        self._skipped_since_sent += 1 + preview.skipped

    def _taken(self, event: Event) -> Event:
        if not isinstance(event, Preview):
            return event
        if self.first_preview is None:
            self.first_preview = asyncio.get_running_loop().time()
        self.previews_sent += 1
        self.previews_skipped += event.skipped
        skipped, self._skipped_since_sent = event.skipped + self._skipped_since_sent, 0
        return replace(event, skipped=skipped)
