"""Every metric of the server, by the contract's names. Owns prometheus_client; knows nothing of what it counts.

Where one thing that happens changes several metrics, a method says it; the others are set through their objects.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from kleinserve.core import Operation, Priority, Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
REQUESTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
TOKENS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # 4096: one image of 1024²
COMPILE_STATES = ("compiled", "eager", "failed")

GO_CODES = {"OK": "OK", "CANCELLED": "Canceled"}  # the others are their name in camel case

disable_created_metrics()  # type: ignore[no-untyped-call]  # the `_created` gauges beside each counter


class Metrics:
    """The metrics of one server, in a registry of their own. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("klein_requests", "Requests that ended.", "operation", "code", "reason")
        self.queue_depth = self._gauge("klein_queue_depth", "Requests that wait.", "priority")
        self.running_requests = self._gauge("klein_running_requests", "Requests from their first step to their end.")
        self.queue_wait_seconds = self._seconds("klein_queue_wait_seconds", "Acceptance to first step.", "operation")
        self.time_to_first_preview_seconds = self._seconds(
            "klein_time_to_first_preview_seconds", "Acceptance to the first preview sent.", "operation"
        )
        self.request_duration_seconds = self._seconds(
            "klein_request_duration_seconds", "A request's beginning to its end.", "operation"
        )
        self.stage_seconds = self._seconds("klein_stage_seconds", "Time of one run of a stage.", "stage")
        self.step_requests = self._histogram("klein_step_requests", "Requests in a step.", REQUESTS)
        self.step_tokens = self._histogram(
            "klein_step_tokens", "Tokens in a step, text and references included.", TOKENS
        )
        self.megapixels = self._counter("klein_megapixels", "Billable megapixels.", "caller", "operation", "direction")
        self.cost_microusd = self._counter(
            "klein_cost_microusd", "Billable cost in millionths of a US dollar.", "caller", "operation"
        )
        self.previews = self._counter("klein_previews", "Previews, by what became of them.", "outcome")
        self.cancelled = self._counter("klein_cancelled", "Cancelled requests, by where they were.", "where")
        self.cache_events = self._counter("klein_cache_events", "Look-ups in the caches.", "cache", "outcome")
        self.deadline = self._counter("klein_deadline", "Requests that had a deadline.", "outcome")
        self.prediction_error_ratio = self._histogram(
            "klein_prediction_error_ratio", "Error of a stage's predicted time, as a share of it.", RATIOS, "stage"
        )
        self.step_tokens_max = self._gauge("klein_step_tokens_max", "Tokens that one step takes at most.")
        self.accelerator_memory_bytes = self._gauge(
            "klein_accelerator_memory_bytes", "The accelerator's memory.", "kind"
        )
        self.compile_state = self._gauge(
            "klein_compile_state",
            "1 for what the model runs as: compiled, eager as chosen, or since that failed.",
            "state",
        )
        self.build_info = self._gauge(
            "klein_build_info", "Always 1; the labels say what runs.", "version", "model", "device", "dtype"
        )
        self.unauthenticated = self._counter("klein_unauthenticated", "Calls without a known caller.", "why")
        self.quota_refused = self._counter(
            "klein_quota_refused", "Requests refused by a limit of their caller.", "caller", "limit"
        )
        self.reloads = self._counter("klein_reloads", "Files read again after a change.", "what", "outcome")
        self.intake_seconds = self._seconds("klein_intake_seconds", "Decoding of one reference.", "outcome")
        self.log_dropped = _Counted("klein_log_dropped", "Log lines that nobody took.")
        self.registry.register(self.log_dropped)
        self.ledger_commit_seconds = self._seconds("klein_ledger_commit_seconds", "A record's way into the ledger.")
        self.ledger_up = self._gauge("klein_ledger_up", "1 while the ledger takes records.")
        self.ledger_dropped = self._counter("klein_ledger_dropped", "REFUSED records that found no room.")
        self.kept_bytes = self._gauge("klein_kept_bytes", "Bytes of results kept for their keys.")
        self.kept_results = self._gauge("klein_kept_results", "Results kept for their keys.")
        self.replays = self._counter("klein_replays", "Requests whose key was known, by what they got.", "kind")
        self.predicted_wait_seconds = self._gauge(
            "klein_predicted_wait_seconds", "Seconds that a STANDARD request of the default size would wait now."
        )
        rpc = ("grpc_type", "grpc_service", "grpc_method")  # go-grpc-prometheus's names, which dashboards know
        self._rpcs_started = self._counter("grpc_server_started", "RPCs begun.", *rpc)
        self._rpcs_handled = self._counter("grpc_server_handled", "RPCs ended.", *rpc, "grpc_code")
        self._rpc_seconds = self._seconds("grpc_server_handling_seconds", "Time of an RPC.", *rpc)
        self._show_zeros()

    def built(self, version: str, model: str, device: str, dtype: str) -> None:
        """Say what runs."""
        self.build_info.labels(version, model, device, dtype).set(1)

    def looked_up(self, cache: str, hits: Sequence[bool]) -> None:
        """Count look-ups in the `prompt` or the `reference` cache."""
        for hit in hits:
            self.cache_events.labels(cache, _outcome(hit)).inc()

    def ran(self, stage: str, seconds: float, error: float | None = None) -> None:
        """Count one run of a stage and, where it was predicted, by what share of its time the prediction was off."""
        self.stage_seconds.labels(stage).observe(seconds)
        if error is not None:
            self.prediction_error_ratio.labels(stage).observe(error)

    def stepped(self, requests: int, tokens: int) -> None:
        """Count one step of this many requests with this many tokens."""
        self.step_requests.observe(requests)
        self.step_tokens.observe(tokens)

    def billable(self, operation: Operation, usage: Usage, caller: str) -> None:
        """Count what a caller is to pay."""
        self.megapixels.labels(caller, operation.value, "output").inc(usage.output_megapixels)
        self.megapixels.labels(caller, operation.value, "reference").inc(usage.reference_megapixels)
        self.cost_microusd.labels(caller, operation.value).inc(usage.cost_microusd)

    def finished(
        self, operation: str, code: str, reason: str, duration_seconds: float, *, has_deadline: bool = False
    ) -> None:
        """Count a request that ended with this status (gRPC's name) and reason (empty on OK), and its deadline."""
        self.requests.labels(operation, code, reason).inc()
        self.request_duration_seconds.labels(operation).observe(duration_seconds)
        if reason == "DEADLINE_UNREACHABLE":
            self.deadline.labels("refused").inc()
        elif reason == "DEADLINE_PASSED":
            self.deadline.labels("missed").inc()
        elif has_deadline and code == "OK":
            self.deadline.labels("met").inc()

    def rpc_started(self, kind: str, method: str) -> None:
        """Count an RPC that begins: `kind` as `server_stream`, `method` as `/klein.v1.ImageService/Generate`."""
        self._rpcs_started.labels(kind, *method.lstrip("/").split("/")).inc()

    def rpc_handled(self, kind: str, method: str, code: str, seconds: float) -> None:
        """Count an RPC that ended with this status (gRPC's name)."""
        labels = (kind, *method.lstrip("/").split("/"))
        self._rpcs_handled.labels(*labels, GO_CODES.get(code, code.title().replace("_", ""))).inc()
        self._rpc_seconds.labels(*labels).observe(seconds)

    def intake(self, outcome: str, seconds: float) -> None:
        """Count one reference: `decoded`, `refused`, `over_budget` or `crashed`."""
        self.intake_seconds.labels(outcome).observe(seconds)

    def exposition(self) -> bytes:
        """The text that `/metrics` answers, of type `prometheus_client.CONTENT_TYPE_LATEST`."""
        return generate_latest(self.registry)

    def _show_zeros(self) -> None:
        """Begin each series whose labels are known, so that its first increase is seen as one."""
        for priority in Priority:
            self.queue_depth.labels(priority.value)
        for operation in Operation:
            for histogram in (
                self.queue_wait_seconds,
                self.time_to_first_preview_seconds,
                self.request_duration_seconds,
            ):
                histogram.labels(operation.value)
        for stage in ("text", "references", "step", "decode", "encode"):
            self.stage_seconds.labels(stage)
        for cache in ("prompt", "reference"):
            for hit in (True, False):
                self.cache_events.labels(cache, _outcome(hit))
        for state in COMPILE_STATES:
            self.compile_state.labels(state)
        for outcome in ("decoded", "refused", "over_budget", "crashed"):
            self.intake_seconds.labels(outcome)
        for what in ("callers", "certificates"):
            for outcome in ("ok", "refused"):
                self.reloads.labels(what, outcome)
        outcomes = {
            self.previews: "sent skipped",
            self.cancelled: "queue step delivery",
            self.deadline: "met missed refused",
            self.unauthenticated: "none unknown conflict certificate",
            self.replays: "attached replayed redrawn gone",
        }
        for counter, values in outcomes.items():
            for value in values.split():
                counter.labels(value)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        """`name` without `_total`, which the exposition adds."""
        return Counter(name, description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(name, description, labels, registry=self.registry)

    def _seconds(self, name: str, description: str, *labels: str) -> Histogram:
        return Histogram(name, description, labels, buckets=SECONDS, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, description, labels, buckets=buckets, registry=self.registry)


class _Counted(Collector):
    """A counter that somebody else counts: `count` says how many."""

    def __init__(self, name: str, description: str):
        self._name, self._description = name, description
        self.count: Callable[[], float] = lambda: 0.0

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._description, value=self.count())


def _outcome(hit: bool) -> str:
    return "hit" if hit else "miss"
