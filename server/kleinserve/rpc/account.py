"""What is counted, recorded and said of a call that has ended."""

from dataclasses import dataclass

import structlog

from kleinserve.config import Config
from kleinserve.core import Draft, Operation, Options
from kleinserve.desk.books import Books
from kleinserve.desk.job import Stage
from kleinserve.errors import (
    Cancelled,
    KleinError,
    QuotaExceeded,
    Unauthenticated,
)
from kleinserve.metrics import Metrics
from kleinserve.rpc.call import Call, Method
from kleinserve.rpc.course import course, seconds_of
from kleinserve.tracing import Traced, Tracing

log = structlog.get_logger()


@dataclass
class Account:
    """Of all calls. `tracing` None: no traces."""

    books: Books
    config: Config
    metrics: Metrics
    tracing: Tracing | None = None

    def count(self, method: Method, call: Call, error: KleinError | None, stage: Stage | None, seconds: float) -> None:
        """Metrics, and the record of what was refused. `stage`: where its job was."""
        metrics = self.metrics
        if call.passed_to:
            return
        if isinstance(error, Unauthenticated):
            metrics.unauthenticated.labels(error.why).inc()
        if isinstance(error, QuotaExceeded):
            metrics.quota_refused.labels(error.caller, error.limit).inc()
        if (stream := call.stream) is not None:
            operation = stream.job.request.operation.value
            metrics.previews.labels("skipped").inc(stream.reader.previews_skipped)
            metrics.previews.labels("sent").inc(stream.reader.previews_sent)
            if stream.reader.first_preview is not None:
                first = stream.reader.first_preview - stream.job.submitted
                metrics.time_to_first_preview_seconds.labels(operation).observe(first)
            if isinstance(error, Cancelled) and stage in (Stage.WAITING, Stage.RUNNING, Stage.DELIVERING):
                metrics.cancelled.labels(stage.value).inc()
        else:
            operation = call.draft.operation.value if call.draft is not None else method.operation
            if isinstance(error, Cancelled):
                metrics.cancelled.labels(Stage.WAITING.value).inc()
            if operation and error is not None and call.caller is not None:
                asked = call.draft or Draft(Operation(operation), "", (), None, Options(0, 0, 1.0), is_seed_drawn=True)
                self.books.refuse(call.request_id, call.caller.name, asked, error, call.arrived_microseconds)
        if operation:
            code, reason = (error.status, error.reason) if error else ("OK", "")
            metrics.finished(operation, code, reason, seconds, has_deadline=call.deadline is not None)

    def log(self, path: str, call: Call, error: KleinError | None, seconds: float) -> None:
        """The call's one line."""
        facts: dict[str, object] = {**_shown(call)}
        if (stream := call.stream) is not None:
            request, spent = stream.job.request, stream.job.spent
            facts |= {
                "seed": request.options.seed,
                "queue_seconds": round(stream.job.queue_seconds, 4),
                "max_step_requests": spent.max_step_requests,
                "previews_skipped": stream.reader.previews_skipped,
            }
            if stream.job.request.request_id != call.request_id:
                facts["job"] = stream.job.request.request_id
            if self.config.log_prompts:
                facts["prompt"] = request.prompt
        if call.passed_to:
            facts["passed_to"] = call.passed_to
        if (parent := call.transport.metadata.get("traceparent")) is not None:
            facts["traceparent"] = parent
        code, reason = (error.status, error.reason) if error else ("OK", "")
        method = path.rsplit("/", 1)[1]
        log.info(
            "request finished",
            method=method,
            code=code,
            reason=reason,
            seconds=round(seconds, 4),
            **facts,
        )

    def show_course(self, path: str, call: Call, code: str, started: float, seconds: float) -> None:
        """Say where its time went, in its trace, and in the log if it took long; once it is known what ran for it."""
        is_slow = 0 < self.config.slow_request_seconds <= seconds
        if self.tracing is None and not is_slow:
            return
        job = call.stream.job if call.stream is not None else None
        facts, began, given = _shown(call), call.arrived_microseconds * 1000, call.transport.metadata
        headers = {name: given[name] for name in ("traceparent", "tracestate") if name in given}

        def show() -> None:
            stages = course(started, started + seconds, job)
            if is_slow:
                log.warning("slow request", code=code, seconds=round(seconds, 4), where=seconds_of(stages), **facts)
            if self.tracing is not None:
                self.tracing.record(Traced(path.lstrip("/"), began, seconds, headers, code, facts, stages))

        show() if job is None else job.when_spent(show)


def _shown(call: Call) -> dict[str, str | int]:
    """What a trace and the log say of a request: whose it is and how large."""
    facts: dict[str, str | int] = {"request_id": call.request_id, "caller": call.caller.name if call.caller else ""}
    if call.stream is None:
        return facts
    request = call.stream.job.request
    return facts | {
        "operation": request.operation.value,
        "size": str(request.size),
        "steps": request.options.steps,
        "references": len(request.references),
        "priority": request.options.priority.value,
    }
