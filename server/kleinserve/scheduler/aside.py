"""The thread beside the steps: it encodes prompts and references before a work's first step, decodes after its last.

A plain loop: pick the best, advance it by one piece. Between the pieces of long work a short one goes first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from kleinserve.errors import AcceleratorLost, AcceleratorOutOfMemory
from kleinserve.scheduler.ending import Ending
from kleinserve.scheduler.engine import Engine
from kleinserve.scheduler.forecast import Forecast
from kleinserve.scheduler.queue import Loop, Queue
from kleinserve.scheduler.turns import Ration
from kleinserve.scheduler.unit import Stage, Unit
from kleinserve.scheduler.watch import Watch
from kleinserve.scheduler.work import Need, Work

_OPEN_MAX = 3  # units at once: each holds its part of the device's memory
_SHORT = 0.5  # of the unit at hand: what takes longer does not go before it
_LONGEST = 0.25  # of a unit: the piece of it that takes longest, by measurement a fifth of a decode
_LOOK_SECONDS = 0.05  # after which the ranks are looked at again, though nobody came
_LOOK_AT_ALL_SECONDS = 0.25
_DONE = object()

log = structlog.get_logger()


@dataclass(frozen=True)
class Window:
    """How much of the works the device may hold at once: `works_max` of them, and `tokens_max` of theirs together.

    Half as many are begun ahead of their first step. The last quarter is for whoever goes before all that wait for
    theirs, but for those that wait because they are large.
    """

    works_max: int
    tokens_max: int

    @property
    def ahead(self) -> int:
        return max(1, self.works_max // 2)

    def has_room(self, works: int, tokens: int, demanded: int, *, is_first: bool) -> bool:
        """Whether one more work that demands so many tokens may be begun beside what is begun."""
        part = 1.0 if is_first else 0.75
        return works == 0 or (works < part * self.works_max and tokens + demanded <= part * self.tokens_max)


class Aside:
    """What the thread beside the steps does. The unit opened last is the one at hand; those before it wait for it."""

    def __init__(
        self,
        engine: Engine,
        queue: Queue,
        forecast: Forecast,
        ending: Ending,
        stages: Mapping[Need, Stage],
        watch: Watch,
        window: Window,
        clock: Callable[[], float],
    ):
        self._engine, self._queue, self._forecast, self._ending = engine, queue, forecast, ending
        self._stages, self._watch, self._window, self._clock = stages, watch, window, clock
        self._open: list[Unit] = []
        self._ration = Ration()
        self._is_cramped = False  # memory did not suffice beside what is open: nothing more is opened until it is done
        self._seen, self._look, self._look_at_all = -1, 0.0, 0.0

    def turn(self) -> bool:
        """Advance the best work by one piece, if there is any; whether there was."""
        now, changes = self._clock(), self._queue.changes(Loop.ASIDE)
        if changes != self._seen or (self._open and now >= self._look):
            self._drop(now)
            self._seen, self._look = changes, now + _LOOK_SECONDS
            self._open_next(now)
        if not self._open:
            return False
        self._advance(self._open[-1])
        return True

    def _drop(self, now: float) -> None:
        """Stop what is open for nobody any more; its generator ends with the last reference."""
        self._ending.expire([work for unit in self._open for work in unit.works], now)
        for unit in [unit for unit in self._open if all(work.is_gone for work in unit.works)]:
            self._leave(unit)
            self._part(unit.works)

    def _open_next(self, now: float) -> None:
        """Open what goes before the unit at hand, if anything does."""
        self._is_cramped = self._is_cramped and bool(self._open)
        is_alone = any(work.is_alone for unit in self._open for work in unit.works)
        if self._is_cramped or is_alone or len(self._open) >= _OPEN_MAX:
            return
        begun = self._queue.begun_works()
        works = self._ending.expire([*begun, *self._waiting(begun, now)], now)
        if held := self._queue.hold(self._choose(works, now)):
            self._enter(held, is_tiled=False)

    def _waiting(self, begun: Sequence[Work], now: float) -> Sequence[Work]:
        """Those that are looked at for being begun: all where there is room for the next one, whoever that is.

        Where there is room only for one that goes before all that wait, those who came since the last look; and all
        now and then, since ranks change with time.
        """
        tokens, ahead = self._queue.tokens, sum(work.started is None for work in begun)
        if not self._window.has_room(len(begun), tokens, 0, is_first=True):
            return ()
        is_open = ahead < self._window.ahead and self._window.has_room(len(begun), tokens, 0, is_first=False)
        if is_open or now >= self._look_at_all:
            self._look_at_all = now + _LOOK_AT_ALL_SECONDS
            return self._queue.take_waiting(fresh_only=False)
        return self._queue.take_waiting(fresh_only=True)

    def _choose(self, works: Sequence[Work], now: float) -> list[Work]:
        """The best-ranked work that needs something here, with others that need the same; none after that at hand."""
        at_hand = self._open[-1] if self._open else None
        able = self._able(self._forecast.order(works, now, self._ration), at_hand, now)
        if not able:
            return []
        first, others = able[0], [other for other in able[1:] if not other.is_alone]
        same = [other for other in others if other.need is first.need]
        chosen = [first] if first.is_alone else self._stages[first.need].alike(first, same)
        if at_hand is not None:
            limit = _SHORT * at_hand.predicted
            while chosen and self._forecast.beside_seconds(first.need, chosen) > limit:
                chosen.pop()
        return chosen

    def _able(self, ranked: Sequence[Work], at_hand: Unit | None, now: float) -> list[Work]:
        """Those that may be opened now: who is ranked before the unit at hand, and has room where it is to be begun."""
        able: list[Work] = []
        begun, tokens, ahead = self._queue.begun, self._queue.tokens, 0  # ahead: before this one, without a step
        for work in ranked:
            if at_hand is not None and work in at_hand.works:
                break
            if work.need is Need.TEXT and not work.is_held:
                is_roomy = self._window.has_room(begun, tokens, work.demand.tokens, is_first=ahead == 0)
                if ahead < self._window.ahead and is_roomy:
                    able.append(work)
                    begun, tokens = begun + 1, tokens + work.demand.tokens
            elif work.need in self._stages and not work.is_held:
                able.append(work)
            ahead += work.started is None and not self._forecast.claim(work).standing.is_aged(now)
        return [work for work in able if at_hand is None or not work.is_alone]

    def _enter(self, works: list[Work], *, is_tiled: bool) -> None:
        need = works[0].need
        pieces = self._stages[need].pieces(works, is_tiled=is_tiled)
        is_aged = self._forecast.claim(works[0]).standing.is_aged(self._clock())
        predicted = self._forecast.beside_seconds(need, works)
        self._open.append(Unit(need, works, pieces, predicted, is_aged, is_tiled))

    def _advance(self, unit: Unit) -> None:
        started, is_done = self._clock(), False
        for work in unit.works:
            work.busy_until = started + _LONGEST * unit.predicted
        failure: Exception | None = None
        try:
            with self._watch.over(unit.predicted):
                is_done = next(unit.pieces, _DONE) is _DONE
        except AcceleratorLost:
            raise
        except AcceleratorOutOfMemory as error:
            failure = AcceleratorOutOfMemory(error.message)  # without the frames, which hold the device's memory
        except Exception as error:
            failure = error
        seconds = self._clock() - started
        unit.seconds += seconds
        self._ration.spend(seconds, is_aged=unit.is_aged)
        for work in unit.works:
            work.ran(unit.need, started, started + seconds, len(unit.works))
            work.at_hand_seconds = unit.seconds
            work.touch()
        if is_done or failure is not None:
            self._leave(unit)
            self._finish(unit) if failure is None else self._retry(unit, failure)

    def _leave(self, unit: Unit) -> None:
        """The unit is open no more: its works pay for it."""
        self._open.remove(unit)
        self._seen = -1
        self._forecast.charge(unit.works, unit.seconds, self._stages[unit.need].parts(unit.works))

    def _finish(self, unit: Unit) -> None:
        for work in unit.works:
            work.is_alone = False
        self._part(self._stages[unit.need].finish(unit))

    def _retry(self, unit: Unit, failure: Exception) -> None:
        """Try again what failed in company, or beside what is open: alone. What failed alone has failed."""
        works, is_memory = unit.works, isinstance(failure, AcceleratorOutOfMemory)
        if is_memory:
            self._engine.release()
            self._is_cramped = bool(self._open)
        if len(works) > 1 or (is_memory and self._open):
            log.warning("trying alone what failed", requests=len(works), need=unit.need.value, error=str(failure)[:200])
            for work in works:
                work.is_alone = True
            self._part(self._queue.release(works, unit.need))
        elif is_memory and unit.need is Need.DECODE and not unit.is_tiled:
            self._enter(works, is_tiled=True)
        elif is_memory:
            self._ending.out_of_memory(works[0])
        else:
            self._ending.broke(works[0], failure)

    def _part(self, gone: Sequence[Work]) -> None:
        for work in gone:
            self._ending.gone(work)
