"""What a replica tells a front of one request, as it travels, and where it waits to be fetched."""

import asyncio
from dataclasses import dataclass, replace

from kleinserve.backend.backend import Load
from kleinserve.core import Admitted, BackendEvent, Failed, Finished, Preview, Progress, Queued
from kleinserve.errors import KleinError


@dataclass(frozen=True)
class Told:
    """What a replica tells of one request at once: first nothing (it is here), then Admitted or the error that refuses
    it, then events, the last of them Finished or Failed. `load`: the replica's, now.
    """

    replica: str
    load: Load
    words: tuple[Admitted | KleinError | BackendEvent, ...] = ()


class Box:
    """What a front has not taken yet; of what it will not miss only the newest, so that one that hangs costs little."""

    def __init__(self) -> None:
        self._events: list[BackendEvent] = []
        self._filled = asyncio.Event()
        self.is_last = False

    def put(self, event: BackendEvent) -> None:
        if isinstance(event, Queued | Progress | Preview):
            for old in [held for held in self._events if type(held) is type(event)]:
                self._events.remove(old)
                if isinstance(old, Preview) and isinstance(event, Preview):
                    event = replace(event, skipped=event.skipped + old.skipped + 1)
        self._events.append(event)
        self._filled.set()

    async def take(self) -> list[BackendEvent]:
        await self._filled.wait()
        self._filled.clear()
        events, self._events = self._events, []
        self.is_last = isinstance(events[-1], Finished | Failed)
        return events
