"""Traces: one span a request, with a child for each stage. Owns opentelemetry; knows nothing of calls.

Where the traces go is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin); where they say
nothing, there is no Tracing and nothing is loaded.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog

from kleinserve import __version__
from kleinserve.core import Span
from kleinserve.errors import BadConfig, quoted

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_PROTOCOLS = {"grpc": "grpc", "http/protobuf": "http"}
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE")  # a server's, by convention
_NANO = 1_000_000_000

log = structlog.get_logger()


@dataclass(frozen=True)
class Traced:
    """A request that has ended. `method`: as `klein.v1.ImageService/Generate`; `began`: nanoseconds since 1970.

    `headers`: those of the request that name its parent (`traceparent`, `tracestate`). `code`: gRPC's name.
    `facts`: for the attributes, without secrets and prompts.
    """

    method: str
    began: int
    seconds: float
    headers: Mapping[str, str]
    code: str
    facts: Mapping[str, str | int | float]
    stages: Sequence[Span]  # in seconds after `began`


class Tracing:
    """Exports spans in batches, on a thread of its own; what the collector does not take in time is dropped."""

    def __init__(self, exporter: "SpanExporter"):
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ours = Resource({"service.name": "kleinserve", "service.version": __version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("kleinserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, traced: Traced) -> None:
        """Hand on the request's span and its children; costs microseconds, and never fails the request."""
        try:
            self._record(traced)
        except Exception:
            log.exception("tracing failed")

    def _record(self, traced: Traced) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        def at(seconds: float) -> int:
            return traced.began + round(seconds * _NANO)

        whole = self._tracer.start_span(
            traced.method,
            context=self._propagator.extract(traced.headers),
            kind=SpanKind.SERVER,
            attributes=_attributes(traced),
            start_time=traced.began,
        )
        if whole.is_recording():
            if traced.code in _FAULTS:
                whole.set_status(StatusCode.ERROR)
            inside, step = set_span_in_context(whole), 0
            for stage in traced.stages:
                attributes: dict[str, Any] = {"klein.requests": stage.requests}
                if stage.stage == "step":
                    attributes["klein.step"] = step = step + 1
                child = self._tracer.start_span(
                    stage.stage, inside, attributes=attributes, start_time=at(stage.start_seconds)
                )
                child.end(at(stage.end_seconds))
        whole.end(at(traced.seconds))

    def close(self, seconds: float) -> None:
        """Export what is left, for at most so long."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(seconds)


def configured(environment: Mapping[str, str]) -> Tracing | None:
    """The tracing that OpenTelemetry's variables ask for; None where they ask for none, or where it is not installed.

    Raises: BadConfig, naming a variable whose value cannot be honoured.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    asks = any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_")) or bool(exporter)
    if not asks or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in ("", "otlp"):
        raise BadConfig(f"OTEL_TRACES_EXPORTER: {quoted(exporter)} is neither otlp nor none")
    given = [environment.get(f"OTEL_EXPORTER_OTLP_{part}PROTOCOL", "").strip() for part in ("TRACES_", "")]
    protocol = given[0] or given[1] or "grpc"
    if protocol not in _PROTOCOLS:
        raise BadConfig(f"OTEL_EXPORTER_OTLP_PROTOCOL: {quoted(protocol)} is none of {', '.join(_PROTOCOLS)}")
    try:
        module = import_module(f"opentelemetry.exporter.otlp.proto.{_PROTOCOLS[protocol]}.trace_exporter")
    except ModuleNotFoundError as missing:
        log.warning("no tracing: pip install 'klein-serve[tracing]'", missing=missing.name)
        return None
    return Tracing(module.OTLPSpanExporter())


def _attributes(traced: Traced) -> dict[str, Any]:
    service, _, method = traced.method.partition("/")
    named = {f"klein.{name}": value for name, value in traced.facts.items() if value != ""}
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "klein.code": traced.code} | named
