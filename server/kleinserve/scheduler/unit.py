"""One unit of work of the thread beside the steps: begun, and advanced a piece at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kleinserve.scheduler.work import Need, Work


@dataclass(eq=False)
class Unit:
    """What is open, for whom, how long it should take, and the seconds that it has had.

    `is_aged`: it was opened for one that was due by its age.
    """

    need: Need
    works: list[Work]
    pieces: Iterator[None]
    predicted: float
    is_aged: bool
    is_tiled: bool = False
    seconds: float = 0.0


class Stage(Protocol):
    """How one need is met."""

    def alike(self, first: Work, others: Sequence[Work]) -> list[Work]:
        """The first work, with those of the others that one unit takes besides."""
        ...

    def pieces(self, works: Sequence[Work], *, is_tiled: bool) -> Iterator[None]: ...

    def parts(self, works: Sequence[Work]) -> list[float]:
        """By what each work's part in the unit is measured."""
        ...

    def finish(self, unit: Unit) -> list[Work]:
        """Say what was done, and let its works go on; returns those that went meanwhile."""
        ...
