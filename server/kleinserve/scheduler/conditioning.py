"""Before a work's first step: its prompt, with others', then its references. Between two passes: the first picture."""

from collections.abc import Iterator, Sequence

from kleinserve.metrics import Metrics
from kleinserve.scheduler.engine import Engine
from kleinserve.scheduler.forecast import Forecast
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.unit import Unit
from kleinserve.scheduler.work import Need, Work

_PROMPTS_MAX = 8  # in one unit: whoever else waits, waits for all of them


class Text:
    """Prompts, several in one unit."""

    def __init__(self, engine: Engine, queue: Queue, forecast: Forecast, metrics: Metrics):
        self._engine, self._queue, self._forecast, self._metrics = engine, queue, forecast, metrics

    def alike(self, first: Work, others: Sequence[Work]) -> list[Work]:
        return [first, *others[: _PROMPTS_MAX - 1]]

    def pieces(self, works: Sequence[Work], *, is_tiled: bool) -> Iterator[None]:
        return self._engine.text([work.render for work in works])

    def parts(self, works: Sequence[Work]) -> list[float]:
        return [0.0 if work.render.prompt_hit else 1.0 for work in works]

    def finish(self, unit: Unit) -> list[Work]:
        self._metrics.looked_up("prompt", [bool(work.render.prompt_hit) for work in unit.works])
        encoded = {work.request.prompt for work in unit.works if not work.render.prompt_hit}
        if encoded:
            self._metrics.ran("text", unit.seconds, self._forecast.observe("text", len(encoded), unit.seconds))
        for work in unit.works:
            work.text_seconds += unit.seconds
        return self._queue.release(unit.works, Need.REFERENCES)


class References:
    """One work's references; afterwards it can take its first step."""

    def __init__(self, engine: Engine, queue: Queue, forecast: Forecast, metrics: Metrics):
        self._engine, self._queue, self._forecast, self._metrics = engine, queue, forecast, metrics

    def alike(self, first: Work, others: Sequence[Work]) -> list[Work]:
        return [first]

    def pieces(self, works: Sequence[Work], *, is_tiled: bool) -> Iterator[None]:
        return self._engine.begin(works[0].render)

    def parts(self, works: Sequence[Work]) -> list[float]:
        return [1.0]

    def finish(self, unit: Unit) -> list[Work]:
        (work,) = unit.works
        hits, units = work.render.reference_hits, work.demand.reference_megapixels
        self._metrics.looked_up("reference", hits)
        if hits:
            error = None if any(hits) else self._forecast.observe("references", units, unit.seconds)
            self._metrics.ran("references", unit.seconds, error)
        work.references_seconds += unit.seconds
        return self._queue.release(unit.works, Need.STEPS)


class Second:
    """The second pass of a difference cut-out: its reference is the first picture."""

    def __init__(self, engine: Engine, queue: Queue):
        self._engine, self._queue = engine, queue

    def alike(self, first: Work, others: Sequence[Work]) -> list[Work]:
        return [first]

    def pieces(self, works: Sequence[Work], *, is_tiled: bool) -> Iterator[None]:
        return self._engine.begin_second(works[0].render)

    def parts(self, works: Sequence[Work]) -> list[float]:
        return [1.0]

    def finish(self, unit: Unit) -> list[Work]:
        (work,) = unit.works
        work.references_seconds += unit.seconds
        self._queue.demand(work, self._engine.demand(work.render))
        return self._queue.release(unit.works, Need.STEPS)
