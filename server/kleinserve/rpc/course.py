"""Where a call's time went: its course from its beginning to its end in stages, without a gap."""

from collections.abc import Iterator, Sequence

from kleinserve.core import Span
from kleinserve.desk.job import Job

_UNSEEN = 0.01  # of the whole: gaps that are shorter together are left out


def course(started: float, ended: float, job: Job | None) -> list[Span]:
    """The stages of a call that lasted from `started` to `ended` on the event loop's clock, in seconds after `started`.

    intake: until the backend had it, reading references too; then what ran for it there; settle: until its record was
    written; delivery: until its reader had the image. Between them: queue before its first step, wait after it.
    A call that joined a job later has what happened since; one without a job was refused in its intake.
    """
    if job is None:
        return [Span("intake", 0.0, ended - started)]
    ran = [Span("intake", started, job.submitted)]
    if job.last_word is not None:
        came = job.last_word - job.spent.seconds
        ran += [Span(s.stage, came + s.start_seconds, came + s.end_seconds, s.requests) for s in job.spent.spans]
    if job.last_word is not None and job.settled is not None:
        ran += [Span("settle", job.last_word, job.settled), Span("delivery", job.settled, ended)]
    first_step = min((span.start_seconds for span in ran if span.stage == "step"), default=ended)
    return [
        Span(span.stage, span.start_seconds - started, span.end_seconds - started, span.requests)
        for span in _filled(ran, started, ended, first_step)
    ]


def _filled(ran: Sequence[Span], started: float, ended: float, first_step: float) -> Iterator[Span]:
    """What ran between start and end, in order and without overlaps, and the gaps where it waited."""
    shortest = _UNSEEN * (ended - started) / (len(ran) + 1)
    at = started
    for span in sorted(ran, key=lambda span: span.start_seconds):
        start, end = max(at, span.start_seconds), min(ended, span.end_seconds)
        if end <= start:
            continue
        if start - at > shortest:
            yield _gap(at, start, first_step)
        yield Span(span.stage, start, end, span.requests)
        at = end
    if ended - at > shortest:
        yield _gap(at, ended, first_step)


def _gap(start: float, end: float, first_step: float) -> Span:
    return Span("queue" if start < first_step else "wait", start, end)


def seconds_of(spans: Sequence[Span]) -> dict[str, float]:
    """Seconds of each stage, the longest first."""
    sums: dict[str, float] = {}
    for span in spans:
        sums[span.stage] = sums.get(span.stage, 0.0) + span.end_seconds - span.start_seconds
    return {stage: round(sums[stage], 4) for stage in sorted(sums, key=lambda stage: -sums[stage])}
