"""An OpenTelemetry collector on this machine: what is exported to it, by OTLP over gRPC."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """`spans`: as OTLP's JSON has them, in the order in which they came; each export is a line of `file` too."""

    file: Path
    target: str = ""
    spans: list[dict[str, Any]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:
        exported = MessageToDict(request)
        with self.file.open("a") as lines:
            lines.write(json.dumps(exported) + "\n")
        for resource in exported["resourceSpans"]:
            self.resources.append(values(resource["resource"]))
            for scope in resource["scopeSpans"]:
                self.spans += scope["spans"]
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def wholes(self) -> list[dict[str, Any]]:
        """The requests' own spans."""
        return [span for span in self.spans if span["kind"] == "SPAN_KIND_SERVER"]

    def children(self, whole: dict[str, Any]) -> list[dict[str, Any]]:
        """A span's children, in the order of their time."""
        found = [span for span in self.spans if span.get("parentSpanId") == whole["spanId"]]
        return sorted(found, key=began)

    def request(self, request_id: str) -> dict[str, Any]:
        (found,) = [whole for whole in self.wholes if values(whole)["klein.request_id"] == request_id]
        return found


@contextmanager
def collecting(folder: Path) -> Iterator[Collector]:
    """A collector that writes into this folder."""
    collector = Collector(folder / "traces.jsonl")
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.target = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def values(span: dict[str, Any]) -> dict[str, Any]:
    """A span's attributes as plain values."""
    pairs = {each["key"]: each["value"] for each in span.get("attributes", [])}
    return {
        key: int(value["intValue"]) if "intValue" in value else next(iter(value.values()))
        for key, value in pairs.items()
    }


def began(span: dict[str, Any]) -> int:
    """In nanoseconds since 1970."""
    return int(span["startTimeUnixNano"])


def ended(span: dict[str, Any]) -> int:
    return int(span["endTimeUnixNano"])


def seconds(span: dict[str, Any]) -> float:
    return (ended(span) - began(span)) / 1e9
