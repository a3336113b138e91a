"""Which traces OpenTelemetry's variables ask for."""

import subprocess
import sys

import pytest
from kleinserve.errors import BadConfig
from kleinserve.tracing import Tracing, configured

SOMEWHERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "images"},
        SOMEWHERE | {"OTEL_TRACES_EXPORTER": "none"},
        SOMEWHERE | {"OTEL_SDK_DISABLED": "true"},
    ],
)
def test_none(environment: dict[str, str]) -> None:
    """Nothing is traced unless an exporter is configured and not switched off."""
    assert configured(environment) is None


@pytest.mark.parametrize("protocol", ["", "grpc", "http/protobuf"])
def test_protocols(protocol: str) -> None:
    """Both of OTLP's binary protocols are there; gRPC is the default."""
    tracing = configured(SOMEWHERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    assert isinstance(tracing, Tracing)
    tracing.close(1.0)


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]
)
def test_refused(name: str, value: str) -> None:
    """What cannot be honoured is refused, naming the variable and its value."""
    with pytest.raises(BadConfig, match=f"{name}.*{value}"):
        configured(SOMEWHERE | {name: value})


def test_costs_nothing() -> None:
    """Without an exporter nothing of OpenTelemetry is loaded."""
    script = (
        "import sys, kleinserve.tracing as t; assert t.configured({}) is None; print('opentelemetry' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"
