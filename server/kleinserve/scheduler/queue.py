"""Every admitted work until its last word: who holds it, how many there are, and what they take. No policy.

The lock is held for a few instructions at a time: whoever ranks works does it on a snapshot, and takes hold of what it
has chosen afterwards.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from kleinserve.core import Demand
from kleinserve.scheduler.cost import Share
from kleinserve.scheduler.work import Need, Work


class Loop(Enum):
    """The two threads that take works from here."""

    STEPS = "steps"
    ASIDE = "aside"


class Queue:
    """Works in order of arrival. Safe between the event loop, which puts and cancels, and the engine's threads.

    `share_of`: what a work takes from the others, by the forecast of `epoch`.
    """

    def __init__(self, share_of: Callable[[Work], Share]):
        self._share_of = share_of
        self._waiting: dict[Work, None] = {}  # their prompts are not encoded, nor being encoded
        self._fresh: dict[Work, None] = {}  # of those, who came since the loop beside the steps last looked
        self._begun: dict[Work, None] = {}  # the device holds something of theirs
        self._started = self._tokens = 0
        self._total = Share(0.0, 0.0)
        self._changes = dict.fromkeys(Loop, 0)
        self._changed = threading.Condition()
        self.is_closed = False

    @property
    def waiting(self) -> int:
        """Works that have had no step."""
        return len(self._waiting) + len(self._begun) - self._started

    @property
    def running(self) -> int:
        return self._started

    @property
    def begun(self) -> int:
        """Works of which the device holds something."""
        return len(self._begun)

    @property
    def tokens(self) -> int:
        """Tokens of those of which the device holds something."""
        return self._tokens

    @property
    def total(self) -> Share:
        """What all works take together."""
        return self._total

    def put(self, work: Work) -> bool:
        """Take a work in; whether it was: nothing is once the queue is closed."""
        share = self._share_of(work)
        with self._changed:
            if self.is_closed:
                return False
            self._waiting[work] = None
            self._fresh[work] = None
            self._add(work, share)
            self._ring(Loop.ASIDE)
            return True

    def hold(self, works: Sequence[Work]) -> list[Work]:
        """Take hold of those that are neither gone nor held by another; they count as begun from now on."""
        with self._changed:
            held = [work for work in works if not (work.is_gone or work.is_held) and self._has(work)]
            for work in held:
                work.is_held = True
                if self._waiting.pop(work, work) is None:
                    self._fresh.pop(work, None)
                    self._begun[work] = None
                    self._tokens += work.demand.tokens
        return held

    def start(self, works: Iterable[Work], now: float) -> list[Work]:
        """Say that these have their first step now; returns those that it is the first for."""
        with self._changed:
            first = [work for work in works if work.started is None]
            for work in first:
                work.started = now
            self._started += len(first)
            if first:
                self._ring(Loop.ASIDE)
        return first

    def release(self, works: Iterable[Work], need: Need) -> list[Work]:
        """Give works back that need something next; at TEXT nothing of theirs is on the device.

        Returns those that went meanwhile, for whoever held them to end.
        """
        shares = []
        for work in works:
            work.need, work.at_hand_seconds = need, 0.0
            work.touch()
            shares.append((work, self._share_of(work)))
        with self._changed:
            for work, share in shares:
                work.is_held = False
                if self._has(work):
                    self._add(work, share)
                if need is Need.TEXT and self._begun.pop(work, work) is None:
                    self._tokens -= work.demand.tokens
                    self._waiting[work] = None
            self._ring(Loop.STEPS if need is Need.STEPS else Loop.ASIDE)
        return [work for work, _ in shares if work.is_gone]

    def demand(self, work: Work, demand: Demand) -> None:
        """A work that is held asks for something else from now on."""
        with self._changed:
            if work in self._begun:
                self._tokens += demand.tokens - work.demand.tokens
            work.demand = demand

    def end(self, work: Work) -> bool:
        """Forget a work; whether it was here: only who hears yes has the last word on it."""
        with self._changed:
            if not self._has(work):
                return False
            if self._begun.pop(work, work) is None:
                self._tokens -= work.demand.tokens
            self._waiting.pop(work, None)
            self._fresh.pop(work, None)
            self._started -= work.started is not None
            self._add(work, Share(0.0, 0.0))
            if not (self._waiting or self._begun):
                self._total = Share(0.0, 0.0)  # what rounding left
            work.is_gone = True
            self._ring(Loop.ASIDE)
            return True

    def let_go(self, work: Work) -> bool:
        """Mark a work as gone; whether it may be ended at once, since no thread holds it."""
        with self._changed:
            is_new, work.is_gone = not work.is_gone, True
            if is_new:
                self._ring(*Loop)
            return not work.is_held

    def ready(self) -> list[Work]:
        """Those that can take a step now."""
        with self._changed:
            return [work for work in self._begun if work.need is Need.STEPS and not (work.is_held or work.is_gone)]

    def begun_works(self) -> list[Work]:
        with self._changed:
            return [work for work in self._begun if not work.is_gone]

    def works(self) -> list[Work]:
        """All, those that wait last."""
        with self._changed:
            return [*self._begun, *self._waiting]

    def take_waiting(self, *, fresh_only: bool) -> list[Work]:
        """Those that are not begun; or of them only who came since this was last asked."""
        with self._changed:
            fresh, self._fresh = self._fresh, {}
            works = fresh if fresh_only else self._waiting
            return [work for work in works if work in self._waiting and not work.is_gone]

    def recount(self) -> None:
        """Every work's share is another now."""
        works = self.works()
        shares = [self._share_of(work) for work in works]
        with self._changed:
            for work, share in zip(works, shares, strict=True):
                if self._has(work):
                    self._add(work, share)

    def changes(self, loop: Loop) -> int:
        """A number that grows with every change that matters to the loop."""
        return self._changes[loop]

    def ring(self, *loops: Loop) -> None:
        """Something has changed that matters to the loops."""
        with self._changed:
            self._ring(*loops)

    def sleep(self, loop: Loop, seen: int, seconds: float | None) -> None:
        """Wait until something changes that was not `seen`, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_closed or self._changes[loop] != seen, seconds)

    def close(self) -> None:
        """End every loop that sleeps or would."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def _has(self, work: Work) -> bool:
        return work in self._waiting or work in self._begun

    def _add(self, work: Work, share: Share) -> None:
        old, total = work.share, self._total
        self._total = Share(
            max(0.0, total.stepping + share.stepping - old.stepping), max(0.0, total.beside + share.beside - old.beside)
        )
        work.share = share

    def _ring(self, *loops: Loop) -> None:
        for loop in loops:
            self._changes[loop] += 1
        self._changed.notify_all()
