"""Traces of a mixed load, as a collector gets them."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from itertools import groupby, pairwise
from typing import Any

import grpc
import pytest
import pytest_asyncio
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import NONE, edit, generate, opened, png, refused, until
from tests.e2e.collector import Collector, began, collecting, ended, seconds, values
from tests.e2e.conftest import ENDLESS, served

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STEPS = 12  # of the slow request
WAITING = ("queue", "wait")
BESIDE = ("text", "references", "decode")  # what the thread beside the steps does
SECRETS = ("red circle", "make it green", "a-key-of-mine", "a-tag-of-mine")
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Load:
    """What a mixed load left: the collector, and by request id what `completed` said of its stages."""

    def __init__(self, collector: Collector):
        self.collector = collector
        self.timings: dict[str, dict[str, float]] = {}
        self.max_step_requests: dict[str, int] = {}
        self.log = collector.file.with_name("log")
        self.continued = self.cancelled = self.refused = self.slow = ""

    async def finish(self, call: Any) -> str:
        request_id = ""
        while (event := await call.read()) is not grpc.aio.EOF:
            request_id = event.request_id
            if event.HasField("completed"):
                said = event.completed.timings
                names = [field.name for field in said.DESCRIPTOR.fields]
                self.timings[request_id] = {name: getattr(said, name).ToNanoseconds() / 1e9 for name in names}
                self.max_step_requests[request_id] = event.completed.max_step_requests
        return request_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Load]:
    """Eleven generations and edits at once, one cancelled, one refused, through a server that then ends."""
    with collecting(tmp_path_factory.mktemp("traces")) as collector:
        load = Load(collector)
        settings = {"STEP_TOKENS_MAX": "600", "MAX_STEPS": str(ENDLESS), "SLOW_REQUEST_SECONDS": "0.0001"}
        environment = {f"KLEINSERVE_{name}": value for name, value in settings.items()}
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.target
        with served(log=load.log, **environment) as server:
            async with opened(server.target) as channel:
                await _run(load, image_pb2_grpc.ImageServiceStub(channel))
        yield load


async def _run(load: Load, stub: Any) -> None:
    parent = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
    calls = [stub.Generate(generate(seed, (size, size))) for seed, size in enumerate((64, 64, 64, 128, 128, 256))]
    calls += [stub.Edit(edit([png(96, 64)], seed, client_tag="a-tag-of-mine")) for seed in range(3)]
    calls.append(stub.Generate(generate(7, idempotency_key="a-key-of-mine"), metadata=parent))
    leaving = stub.Generate(generate(8, (256, 256), ENDLESS, preview=NONE))
    load.cancelled = (await until(leaving, "progress")).request_id
    large = {"width": 256, "height": 256, "steps": STEPS, "priority": "PRIORITY_BATCH", "preview": NONE}
    asked = edit([png(256, 256), png(256, 256, "blue")], 9, **large)  # no step has room for it and another
    asked.prompt = "make it blue"
    slow = stub.Edit(asked)
    await until(slow, "queued")
    leaving.cancel()
    await asyncio.gather(*(load.finish(call) for call in calls[:-1]))
    load.continued, load.slow = await load.finish(calls[-1]), await load.finish(slow)
    _, _, details = await refused(stub.Generate(generate(9, (63, 64))))
    load.refused = details["ErrorInfo"].metadata["request_id"]


async def test_children_add_up(load: Load) -> None:
    """Every request has one span, whose children follow one another and add up to it within 5 %."""
    collector = load.collector
    ids = [values(whole)["klein.request_id"] for whole in collector.wholes]
    assert sorted(ids) == sorted([*load.timings, load.cancelled, load.refused])
    for whole in collector.wholes:
        children = collector.children(whole)
        assert sum(map(seconds, children)) == pytest.approx(seconds(whole), rel=0.05)
        for one, other in pairwise(children):
            assert ended(one) <= began(other) + 1000
        assert began(children[0]) >= began(whole)


async def test_stages(load: Load) -> None:
    """A finished request's children are its stages, and last as long as `completed` says."""
    for request_id, said in load.timings.items():
        whole = load.collector.request(request_id)
        children, count = load.collector.children(whole), values(whole)["klein.steps"]
        spent = {"intake": 0.0, "step": 0.0, "text": 0.0, "decode": 0.0, "encode": 0.0, "delivery": 0.0}
        for child in children:
            spent[child["name"]] = spent.get(child["name"], 0.0) + seconds(child)
        found = [values(child)["klein.step"] for child in children if child["name"] == "step"]
        assert found == list(range(1, count + 1))
        assert spent["step"] == pytest.approx(said["denoise"], abs=0.002)
        assert spent["decode"] == pytest.approx(
            said["decode"], abs=0.02
        )  # its pieces are one span with what is between
        assert spent["encode"] == pytest.approx(said["encode"], abs=0.002)
        assert spent["delivery"] > 0


async def test_shared_steps(load: Load) -> None:
    """A step's span says how many shared it: as many requests have a step at that time, and others none."""
    for request_id, most in load.max_step_requests.items():
        children = load.collector.children(load.collector.request(request_id))
        found = [child for child in children if child["name"] == "step"]
        assert max(values(step)["klein.requests"] for step in found) == most
    steps = [span for span in load.collector.spans if span["name"] == "step"]
    middles = [(began(step) + ended(step)) / 2 for step in steps]
    for step in steps:
        during = [at for at in middles if began(step) < at < ended(step)]
        assert len(during) == values(step)["klein.requests"]
    assert max(load.max_step_requests.values()) > 1


async def test_slow_request(load: Load) -> None:
    """Of a slow request every stage and each step is there, and what it waited besides others had the thread for."""
    whole, said = load.collector.request(load.slow), load.timings[load.slow]
    children = load.collector.children(whole)
    ran = [child for child in children if child["name"] not in WAITING]
    assert [values(child)["klein.step"] for child in ran if child["name"] == "step"] == list(range(1, STEPS + 1))
    stages = ["intake", "text", "references", "step", "decode", "encode", "settle", "delivery"]
    assert [name for name, _ in groupby(child["name"] for child in ran)] == stages
    for name, stage in {"denoise": "step", **{name: name for name in (*BESIDE, "encode")}}.items():
        spent = sum(seconds(child) for child in ran if child["name"] == stage)
        assert spent == pytest.approx(said[name], rel=0.05, abs=0.001)
    pairs = [(child, next_) for child, next_ in pairwise(children) if child["name"] in WAITING]
    assert "queue" in {gap["name"] for gap, _ in pairs}
    waited = sum(_behind_others(load, gap, next_) for gap, next_ in pairs)
    assert sum(map(seconds, ran)) + waited == pytest.approx(seconds(whole), rel=0.05)


def _behind_others(load: Load, gap: dict[str, Any], next_: dict[str, Any]) -> float:
    """Seconds of a gap in which the thread that then did the next stage was at work for other requests."""
    thread = ("step",) if next_["name"] == "step" else BESIDE if next_["name"] in BESIDE else ()
    theirs = [s for s in load.collector.spans if s["name"] in thread and s["parentSpanId"] != gap["parentSpanId"]]
    at, until_, covered = began(gap), ended(gap), 0
    for span in sorted(theirs, key=began):
        start, end = max(at, began(span)), min(until_, ended(span))
        covered, at = covered + max(0, end - start), max(at, end)
    return covered / 1e9


async def test_slow_request_line(load: Load) -> None:
    """A request above `slow_request_seconds` has a log line whose stages are the trace's, the longest first."""
    lines = [json.loads(line) for line in load.log.read_text().splitlines()]
    slow = {line["request_id"]: line for line in lines if line["event"] == "slow request"}
    assert set(load.timings) <= set(slow)
    for request_id, line in slow.items():
        spent: dict[str, float] = {}
        for child in load.collector.children(load.collector.request(request_id)):
            spent[child["name"]] = spent.get(child["name"], 0.0) + seconds(child)
        assert line["where"] == pytest.approx(spent, abs=0.001)
        assert list(line["where"].values()) == sorted(line["where"].values(), reverse=True)
        assert sum(line["where"].values()) == pytest.approx(line["seconds"], rel=0.05)


async def test_traceparent(load: Load) -> None:
    """A request with a `traceparent` continues that trace; another begins its own."""
    continued = load.collector.request(load.continued)
    assert (_id(continued, "traceId"), _id(continued, "parentSpanId")) == (TRACE, PARENT)
    assert len({whole["traceId"] for whole in load.collector.wholes}) == len(load.collector.wholes)
    assert all("parentSpanId" not in whole for whole in load.collector.wholes if whole is not continued)


async def test_failed_requests(load: Load) -> None:
    """A cancelled request's trace has what ran for it, and a refused one's its intake, both with their status."""
    cancelled, without = load.collector.request(load.cancelled), load.collector.request(load.refused)
    assert values(cancelled)["klein.code"] == "CANCELLED"
    assert {"text", "step"} <= {child["name"] for child in load.collector.children(cancelled)}
    assert values(without)["klein.code"] == "INVALID_ARGUMENT"
    assert [child["name"] for child in load.collector.children(without)] == ["intake"]


async def test_nothing_secret(load: Load) -> None:
    """No prompt, key or tag is in what is exported; the service says its name."""
    text = load.collector.file.read_text()
    assert not [secret for secret in SECRETS if secret in text]
    assert all(json.loads(line) for line in text.splitlines())
    assert load.collector.resources[0]["service.name"] == "kleinserve"


async def test_collector_that_is_gone(serving_traces_nowhere: str) -> None:
    """A collector that nobody runs costs no request, and the server still ends with exit code 0."""
    async with opened(serving_traces_nowhere) as channel:
        await until(image_pb2_grpc.ImageServiceStub(channel).Generate(generate()), "completed")


@pytest.fixture
def serving_traces_nowhere() -> AsyncIterator[str]:
    with served(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as server:
        yield server.target


def _id(span: dict[str, Any], name: str) -> str:
    """An identifier in hex; protobuf's JSON has it in base64."""
    return b64decode(span[name]).hex()
