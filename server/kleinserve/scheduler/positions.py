"""Which of the waiting works are told their position now: at a bounded rate, whatever their number. Knows no timer."""

from collections.abc import Sequence
from dataclasses import dataclass

from kleinserve.scheduler.work import Work

_EVERY_SECONDS = 5.0
_FIRST_SECONDS = 0.02  # who starts within it has not waited, and is told nothing
_CHANGES_MAX = 16


@dataclass(frozen=True)
class Place:
    """How many are before a work, and the seconds until they are done."""

    work: Work
    position: int
    wait_seconds: float


class Positions:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._told: dict[Work, tuple[int, float]] = {}  # the position, and when

    def due(self, places: Sequence[Place], now: float) -> list[Place]:
        """Of all waiting works, the next one first, those to be told: it counts as done.

        Whoever was told nothing yet, the first 16 whose position is another, and everyone after five seconds.
        """
        due: list[Place] = []
        told: dict[Work, tuple[int, float]] = {}
        changes = 0
        for place in places:
            if now - place.work.arrived < _FIRST_SECONDS:
                continue
            position, when = self._told.get(place.work, (-1, 0.0))
            is_due = position == -1 or now - when >= _EVERY_SECONDS
            if not is_due and position != place.position and changes < _CHANGES_MAX:
                changes += 1
                is_due = True
            told[place.work] = (place.position, now) if is_due else (position, when)
            if is_due:
                due.append(place)
        self._told = told  # of those that no longer wait nothing is kept
        return due
