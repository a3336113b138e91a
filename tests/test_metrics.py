"""The metrics have the contract's names, types and labels, and what happens is counted once."""

import pytest
from kleinserve.core import Operation, Usage
from kleinserve.metrics import Metrics
from prometheus_client.parser import text_string_to_metric_families

CONTRACT = """
| `klein_requests_total` | counter | operation, code, reason |
| `klein_queue_depth` | gauge | priority |
| `klein_running_requests` | gauge | |
| `klein_queue_wait_seconds` | histogram | operation |
| `klein_time_to_first_preview_seconds` | histogram | operation |
| `klein_request_duration_seconds` | histogram | operation |
| `klein_stage_seconds` | histogram | stage |
| `klein_step_requests` | histogram | |
| `klein_step_tokens` | histogram | |
| `klein_megapixels_total` | counter | caller, operation, direction |
| `klein_cost_microusd_total` | counter | caller, operation |
| `klein_previews_total` | counter | outcome |
| `klein_cancelled_total` | counter | where |
| `klein_cache_events_total` | counter | cache, outcome |
| `klein_deadline_total` | counter | outcome |
| `klein_accelerator_memory_bytes` | gauge | kind |
| `klein_compile_state` | gauge | state |
| `klein_build_info` | gauge | version, model, device, dtype |
| `klein_ledger_commit_seconds` | histogram | |
| `klein_ledger_up` | gauge | |
| `klein_ledger_dropped_total` | counter | |
| `klein_kept_bytes` | gauge | |
| `klein_kept_results` | gauge | |
| `klein_replays_total` | counter | kind |
| `klein_unauthenticated_total` | counter | why |
| `klein_quota_refused_total` | counter | caller, limit |
| `klein_reloads_total` | counter | what, outcome |
| `klein_intake_seconds` | histogram | outcome |
| `klein_log_dropped_total` | counter | |
| `klein_predicted_wait_seconds` | gauge | |
| `grpc_server_started_total` | counter | grpc_type, grpc_service, grpc_method |
| `grpc_server_handled_total` | counter | grpc_type, grpc_service, grpc_method, grpc_code |
| `grpc_server_handling_seconds` | histogram | grpc_type, grpc_service, grpc_method |
| `klein_prediction_error_ratio` | histogram | stage |
| `klein_step_tokens_max` | gauge | |
"""
USAGE = Usage(4_194_304, 4, 2, 17_000, True, "x")
EDIT = "/klein.v1.ImageService/Edit"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def used(metrics: Metrics) -> Metrics:
    """Metrics of a server to which everything has happened once."""
    metrics.built("0.1.0", "mini", "cpu", "float32")
    metrics.looked_up("prompt", [False])
    metrics.looked_up("reference", [True, False])
    metrics.ran("text", 0.02)
    metrics.ran("references", 0.3)
    metrics.ran("step", 0.2, 0.1)
    metrics.stepped(3, 768)
    metrics.billable(Operation.EDIT, USAGE, "anonymous")
    metrics.finished("edit", "OK", "", 1.5, has_deadline=True)
    metrics.accelerator_memory_bytes.labels("used").set(1)
    metrics.quota_refused.labels("web", "requests_max").inc()
    metrics.rpc_started("server_stream", EDIT)
    metrics.rpc_handled("server_stream", EDIT, "OK", 1.5)
    return metrics


def scraped(metrics: Metrics) -> dict[str, float]:
    """Every sample of a scrape, as `name{a,b}` with the labels' values in the order of their names."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    samples = (sample for family in families for sample in family.samples)
    return {f"{s.name}{{{','.join(s.labels[name] for name in sorted(s.labels))}}}": s.value for s in samples}


def test_the_metrics_are_the_contracts(metrics: Metrics) -> None:
    """A scrape has each metric of the contract with its type and labels, a description, and no other metric."""
    seen = {}
    for family in text_string_to_metric_families(used(metrics).exposition().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        seen[name] = (family.type, labels)
        assert family.documentation.endswith(".")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in CONTRACT.strip().splitlines()]
    assert seen == {name: (kind, {frozenset(filter(None, labels.split(", ")))}) for name, kind, labels in rows}


def test_what_is_known_is_zero_before_it_happens(metrics: Metrics) -> None:
    """A server that has done nothing shows zero for each outcome, so that the first one is seen as an increase."""
    samples = scraped(metrics)
    for outcome in (
        "previews_total{sent}",
        "previews_total{skipped}",
        "deadline_total{missed}",
        "cancelled_total{step}",
    ):
        assert samples[f"klein_{outcome}"] == 0
    assert samples["klein_cache_events_total{prompt,hit}"] == 0
    assert samples["klein_queue_depth{interactive}"] == 0
    assert samples["klein_stage_seconds_count{encode}"] == 0
    assert not any(samples.values())


def test_what_happens_is_counted(metrics: Metrics) -> None:
    """One edit, its caches, its step, its price and its end appear with their values."""
    samples = scraped(used(metrics))
    wanted = {
        "klein_requests_total{OK,edit,}": 1,  # labels by name: code, operation, reason
        "klein_request_duration_seconds_sum{edit}": 1.5,
        "klein_megapixels_total{anonymous,output,edit}": 4,
        "klein_megapixels_total{anonymous,reference,edit}": 2,
        "klein_cost_microusd_total{anonymous,edit}": 17_000,
        "klein_cache_events_total{prompt,miss}": 1,
        "klein_cache_events_total{reference,hit}": 1,
        "klein_cache_events_total{reference,miss}": 1,
        "klein_stage_seconds_sum{text}": 0.02,
        "klein_stage_seconds_sum{references}": 0.3,
        "klein_stage_seconds_sum{step}": 0.2,
        "klein_step_requests_sum{}": 3,
        "klein_step_tokens_sum{}": 768,
        "klein_deadline_total{met}": 1,
        "klein_build_info{cpu,float32,mini,0.1.0}": 1,
        "grpc_server_started_total{Edit,klein.v1.ImageService,server_stream}": 1,
        "grpc_server_handled_total{OK,Edit,klein.v1.ImageService,server_stream}": 1,
    }
    assert {name: samples.get(name) for name in wanted} == wanted


ENDS = [  # code, reason, whether there was a deadline, what is counted of it
    ("OK", "", True, "met"),
    ("OK", "", False, None),
    ("DEADLINE_EXCEEDED", "DEADLINE_PASSED", True, "missed"),
    ("DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE", True, "refused"),
    ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE", True, "refused"),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", True, None),
    ("CANCELLED", "CANCELLED", True, None),
]


@pytest.mark.parametrize(("code", "reason", "has_deadline", "outcome"), ENDS)
def test_deadlines_are_counted_by_outcome(
    metrics: Metrics, code: str, reason: str, has_deadline: bool, outcome: str | None
) -> None:
    """Every end is one request; with a deadline it was met, missed or refused, unless it ended for another reason."""
    metrics.finished("generate", code, reason, 0.1, has_deadline=has_deadline)
    samples = scraped(metrics)
    assert samples[f"klein_requests_total{{{code},generate,{reason}}}"] == 1
    counted = {name: samples[f"klein_deadline_total{{{name}}}"] for name in ("met", "missed", "refused")}
    assert counted == {name: float(name == outcome) for name in counted}


@pytest.mark.parametrize(
    ("code", "go"), [("OK", "OK"), ("CANCELLED", "Canceled"), ("INVALID_ARGUMENT", "InvalidArgument")]
)
def test_rpc_codes_are_gos(metrics: Metrics, code: str, go: str) -> None:
    """RPC metrics spell the status as go-grpc-prometheus does."""
    metrics.rpc_handled("unary", "/klein.v1.UsageService/GetUsage", code, 0.1)
    assert scraped(metrics)[f"grpc_server_handled_total{{{go},GetUsage,klein.v1.UsageService,unary}}"] == 1


def test_two_servers_count_apart() -> None:
    """Metrics of two servers in one process do not mix."""
    first, second = Metrics(), Metrics()
    first.running_requests.inc()
    assert scraped(second)["klein_running_requests{}"] == 0
