"""The ends of a job, beside the steps: its prompt and references before the first, its decoding after the last."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from kleinserve.engine import memory
from kleinserve.engine.alpha import Picture
from kleinserve.engine.engine import Engine
from kleinserve.metrics import Metrics
from kleinserve.scheduler.job import Job, Stage, load_of
from kleinserve.scheduler.outlook import Outlook
from kleinserve.scheduler.queue import Queue
from kleinserve.scheduler.worker import Hands, together

T = TypeVar("T")

_BEGUN_MAX = 16  # jobs begun ahead of their first step: their embeddings hold the device's memory
_PROMPTS_MAX = 8  # encoded in one pass; references are encoded one by one, so only jobs without any share it
_DECODED_MAX = 4  # in one call: whoever else waits, waits for all of them
_SHORT = 0.5  # of the work at hand: what takes longer does not interrupt it


class Cramped(BaseException):
    """Memory did not suffice beside the work that was interrupted. Not an Exception: no request has failed."""


class Broken(BaseException):
    """A defect of ours in the middle of other work, which is not to be blamed: it ends the thread, as it does alone."""


class Held(NamedTuple):
    """Work at hand, since when by the clock that stands still in its pauses."""

    jobs: list[Job]
    since: float


class Ends:
    """What the thread beside the steps chooses and does: the best-ranked job, with others that need the same.

    Long work lets short work that ranks before it go first, between its parts.
    """

    def __init__(
        self,
        engine: Engine,
        outlook: Outlook,
        metrics: Metrics,
        hands: Hands,
        decode_pixels_max: int,
        queue: Queue,
    ):
        self._engine, self._outlook, self._metrics, self._hands = engine, outlook, metrics, hands
        self._decode_pixels_max, self._queue = decode_pixels_max, queue
        self._at_hand: list[Held] = []  # each interrupts the one before
        self._is_cramped = False
        engine.pauses.do = self._interrupt

    def choose(self, jobs: Sequence[Job]) -> list[Job]:
        """The best-ranked job that is to be begun or decoded, with others that need the same.

        Only the first `_BEGUN_MAX` of those that wait are begun ahead, and twice as many at most are begun at once.
        """
        ends = [job for job in jobs if job.stage is Stage.WAITING or job.drawing.is_denoised]
        ordered = self._outlook.ordered(ends, time.monotonic())
        waiting = [job for job in ordered if not job.drawing.is_denoised]
        room = 2 * _BEGUN_MAX - sum(job.is_begun for job in waiting)
        soon = {job for job in waiting[:_BEGUN_MAX] if not job.is_begun and room > 0}
        first = next((job for job in ordered if job.drawing.is_denoised or job in soon), None)
        if first is None:
            return []
        if first.is_begun:
            alike = [job for job in ordered if job.drawing.is_denoised and job.request.size == first.request.size]
            return alike[: max(1, min(_DECODED_MAX, self._decode_pixels_max // first.request.size.pixels))]
        if first.request.references:
            return [first]
        return [job for job in waiting if job in soon and not job.request.references][: min(room, _PROMPTS_MAX)]

    def work(self, jobs: list[Job]) -> None:
        """Begin the jobs, or decode them and hand out their pictures; a second pass goes back to the steps."""
        if jobs[0].is_begun:
            self._decode(jobs)
        else:
            self._begin(jobs)

    def _together(self, work: Callable[[list[Job]], object], jobs: list[Job]) -> tuple[list[Job], float]:
        """Do `work` with the jobs at hand: those for which it succeeded, and its seconds without its pauses."""
        clock = self._engine.pauses.seconds
        self._at_hand.append(Held(jobs, clock()))
        try:
            return together(work, jobs, self._hands.failed), clock() - self._at_hand[-1].since
        finally:
            for job in self._at_hand.pop().jobs:
                job.worked_seconds = 0.0
            self._is_cramped = self._is_cramped and bool(self._at_hand)

    def _interrupt(self) -> None:
        """In a pause of the work at hand, do what goes before it and is short beside it."""
        if not self._at_hand:  # the engine is used without a scheduler
            return
        for job in self._at_hand[-1].jobs:
            job.worked_seconds = self._engine.pauses.seconds() - self._at_hand[-1].since
        while not self._is_cramped and (jobs := self._queue.claim(self._choose_sooner, waits=False)):
            try:
                self.work(jobs)
            except Cramped:
                memory.release()
                self._is_cramped = True  # until the outermost work is done
            except Exception as error:
                raise Broken from error
            finally:
                self._queue.release(jobs)

    def _choose_sooner(self, jobs: Sequence[Job]) -> list[Job]:
        at_hand = [job for held in self._at_hand for job in held.jobs]
        chosen = self.choose([*at_hand, *jobs])
        if not chosen or chosen[0] in at_hand:
            return []
        chosen = [job for job in chosen if job not in at_hand]
        limit = _SHORT * self._outlook.end(self._at_hand[-1].jobs)
        while chosen and self._outlook.end(chosen) > limit:
            chosen.pop()
        return chosen

    def _roomy(self, work: Callable[[], T]) -> T:
        """`work`'s result. Raises: Cramped where it runs out of memory and interrupts other work."""
        try:
            return work()
        except Exception as error:
            if len(self._at_hand) > 1 and memory.is_exhausted(error):
                raise Cramped from error
            raise

    def _begin(self, jobs: list[Job]) -> None:
        def begin(some: list[Job]) -> None:
            self._roomy(lambda: self._engine.begin([job.drawing for job in some]))

        begun, _ = self._together(begin, jobs)
        metrics, cost = self._metrics, self._outlook.cost
        metrics.looked_up("prompt", [bool(job.drawing.prompt_hit) for job in begun])
        encoded = [job.drawing for job in begun if not job.drawing.prompt_hit]
        if encoded:  # in one run, which each of them waited for
            seconds = encoded[0].text_seconds
            prompts = len({drawing.prompt.ids for drawing in encoded})
            metrics.ran("text", seconds, cost.observe("text", prompts, seconds))
        for job in begun:
            hits, seconds = job.drawing.reference_hits, job.drawing.references_seconds
            metrics.looked_up("reference", hits)
            if hits and not any(hits):
                metrics.ran("references", seconds, cost.observe("references", job.load.reference_megapixels, seconds))
            elif hits:
                metrics.ran("references", seconds)

    def _decode(self, jobs: list[Job]) -> None:
        pictures: dict[Job, Picture] = {}
        decoded, seconds = self._together(lambda some: pictures.update(self._decoded(some)), jobs)
        if not decoded:
            return
        error = self._outlook.cost.observe("decode", sum(job.load.output_megapixels for job in decoded), seconds)
        self._metrics.ran("decode", seconds, error)
        for job in decoded:
            job.decode_seconds += seconds
            if not job.drawing.needs_second:
                self._queue.remove(job)
                job.drawing.row = None  # the device's memory: a slow reader may keep the job for minutes
                self._hands.picture(job, pictures[job])
        for job in [job for job in decoded if job.drawing.needs_second]:
            self._together(lambda some: self._second(some[0], pictures), [job])

    def _second(self, job: Job, pictures: dict[Job, Picture]) -> None:
        self._roomy(lambda: self._engine.begin_second(job.drawing, pictures[job]))
        job.load = load_of(self._engine, job.drawing)  # it has a reference now

    def _decoded(self, jobs: list[Job]) -> dict[Job, Picture]:
        drawings = [job.drawing for job in jobs]
        try:
            return dict(zip(jobs, self._roomy(lambda: self._engine.decode(drawings)), strict=True))
        except Exception as error:
            if len(jobs) > 1 or not memory.is_exhausted(error):
                raise
        memory.release()
        return dict(zip(jobs, self._engine.decode(drawings, tiled=True), strict=True))
