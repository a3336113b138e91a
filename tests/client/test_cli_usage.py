"""`klein usage` as a person runs it, in a process (cli/usage.py)."""

import csv
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from klein.v1 import usage_pb2

from tests.client.command import klein, running

RECORD = usage_pb2.UsageRecord(
    record_id="r-1", request_id="request-1", caller="web", operation=1, outcome=2, reason="CANCELLED",
    width=64, height=32, steps_run=3, end_time=Timestamp(seconds=1_795_000_000),
    usage=usage_pb2.Usage(output_megapixels=1, cost_microusd=14_000, price_version="test"),
)  # fmt: skip


@pytest.mark.parametrize("what", ["totals", "records"])
def test_usage(server: Any, what: str) -> None:
    """Usage is a table for people, and CSV and lines of JSON with integers for programs."""
    total = usage_pb2.UsageTotal(caller="web", operation=1, requests=1200, images=2, cost_microusd=28_000)
    if what == "totals":
        server.play(lambda request, context: iter([usage_pb2.GetUsageResponse(totals=[total])]))
    else:
        server.play(lambda request, context: iter([usage_pb2.ListUsageRecordsResponse(record=RECORD)]))

    def shown(*arguments: str) -> list[str]:
        done = klein(
            "usage", what, "--from", "2026-11-01", "--to", "2026-12-01T00:00+02:00", *arguments, server=server.target
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    interval, heading, row = shown()
    assert interval == "2026-11-01 00:00 to 2026-11-30 22:00 UTC"
    assert heading.split()[0] == ("caller" if what == "totals" else "ended")
    assert ("$0.028000" if what == "totals" else "CANCELLED") in row
    [facts] = map(json.loads, shown("--format", "json"))
    names, values = csv.reader(shown("--format", "csv"))
    assert dict(zip(names, values, strict=True)) == {name: str(value) for name, value in facts.items()}
    assert (facts["caller"], facts["cost_microusd"]) == ("web", 28_000 if what == "totals" else 14_000)
    asked = server.requests[0]
    assert asked.end_time.ToDatetime(UTC) == datetime(2026, 11, 30, 22, tzinfo=UTC)


def test_records_come_one_by_one(server: Any, tmp_path: Path) -> None:
    """A listing is printed as it comes, and can be gone on with."""
    release = threading.Event()

    def slow(request: Any, context: grpc.ServicerContext) -> Any:
        yield usage_pb2.ListUsageRecordsResponse(record=RECORD)
        release.wait(20)

    server.play(slow)
    arguments = ["usage", "records", "--format", "json", "--after", "r-0"]
    with running(arguments, server.target, tmp_path) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["record_id"] == "r-1"
        release.set()
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert server.requests[0].after_record_id == "r-0"
