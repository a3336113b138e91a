"""After a work's last step: its picture, with others of the same size."""

from collections.abc import Iterator, Sequence

from kleinserve.metrics import Metrics
from kleinserve.scheduler.ending import Ending
from kleinserve.scheduler.engine import Engine
from kleinserve.scheduler.forecast import Forecast
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.unit import Unit
from kleinserve.scheduler.work import Need, Work

_PICTURES_MAX = 4  # in one unit: whoever else waits, waits for all of them


class Decoding:
    """Pictures of one size, of `pixels_max` together at most in one unit."""

    def __init__(
        self, engine: Engine, queue: Queue, forecast: Forecast, metrics: Metrics, ending: Ending, pixels_max: int
    ):
        self._engine, self._queue, self._forecast = engine, queue, forecast
        self._metrics, self._ending, self._pixels_max = metrics, ending, pixels_max

    def alike(self, first: Work, others: Sequence[Work]) -> list[Work]:
        size = first.request.size
        same = [other for other in others if other.request.size == size]
        return [first, *same[: max(1, min(_PICTURES_MAX, self._pixels_max // size.pixels)) - 1]]

    def pieces(self, works: Sequence[Work], *, is_tiled: bool) -> Iterator[None]:
        return self._engine.decode([work.render for work in works], tiled=is_tiled)

    def parts(self, works: Sequence[Work]) -> list[float]:
        return [1.0] * len(works)

    def finish(self, unit: Unit) -> list[Work]:
        megapixels = sum(work.demand.output_megapixels for work in unit.works)
        error = None if unit.is_tiled else self._forecast.observe("decode", megapixels, unit.seconds)
        self._metrics.ran("decode", unit.seconds, error)
        for work in unit.works:
            work.decode_seconds += unit.seconds
        more = [work for work in unit.works if work.render.needs_second]
        for work in unit.works:
            if work not in more and not work.is_gone:
                self._ending.decoded(work)
        gone = [work for work in unit.works if work.is_gone and work not in more]
        return [*gone, *(self._queue.release(more, Need.SECOND) if more else ())]
