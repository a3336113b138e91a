"""What the engine's threads hand out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kleinserve.core import Pixels, Preview, Progress
from kleinserve.errors import KleinError
from kleinserve.scheduler.work import Work

Drawn = Callable[[], Pixels | Preview]
"""A step's picture, or its latent where that was asked: ready when the call returns, from a thread that may wait."""


class Stepped(NamedTuple):
    """A work has done a step. `drawn`: what that showed, None where nobody wants it."""

    work: Work
    progress: Progress
    drawn: Drawn | None


@dataclass(frozen=True)
class Outbox:
    """Each is called from one of the engine's threads, or from the thread that cancels, and returns at once.

    `started` is told once for every work, with its first step; `stepped` of all that shared a step. The last word on
    every work is exactly one of `decoded` (its render has its picture) and `failed`, also after a cancel. `died`: no
    more works can be done by this process; every one has failed before.
    """

    started: Callable[[Sequence[Work]], None]
    stepped: Callable[[Sequence[Stepped]], None]
    decoded: Callable[[Work], None]
    failed: Callable[[Work, KleinError], None]
    died: Callable[[BaseException], None]
