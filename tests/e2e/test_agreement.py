"""What streams said, what metrics count and what the ledger holds are one and the same."""

import asyncio
import hashlib
import os
import random
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from klein.v1 import image_pb2, image_pb2_grpc, usage_pb2, usage_pb2_grpc

from tests.e2e.calls import edit, generate, opened, png
from tests.e2e.conftest import Serving, killed

REQUESTS = int(os.environ.get("KLEIN_AGREEMENT_REQUESTS", "60"))
AT_ONCE = 12
BEHAVIOURS = ("read", "read", "edit", "cancel", "deadline", "replay", "attached", "detached", "cancelled by key")
CALLERS = ("web", "batch")
SETTINGS = {"DEADLINE_ADMISSION": "false", "PRICE_REFERENCE_MEGAPIXEL_MICROUSD": "77", "INTAKE_WORKERS": "1"}
SETTINGS |= {"KEPT_BYTES_MAX": "4000000"}
STAGES = ("text", "references", "step", "decode")


@dataclass
class Heard:
    """What all streams said: Completed's usage by request id, where the stream drew it itself and where it replayed."""

    streams: int = 0
    admitted: set[str] = field(default_factory=set)
    drawn: dict[str, usage_pb2.Usage] = field(default_factory=dict)
    replayed: dict[str, usage_pb2.Usage] = field(default_factory=dict)
    left_early: set[str] = field(default_factory=set)  # whose reader went away, or whose deadline passed
    unknown: int = 0  # ended before they were accepted


class Caller:
    """One caller, who behaves in every way that callers do."""

    def __init__(self, channel: grpc.aio.Channel, name: str, heard: Heard, chance: random.Random):
        self.stub, self.heard, self.chance = image_pb2_grpc.ImageServiceStub(channel), heard, chance
        self.metadata = [("authorization", f"Bearer {name}")]
        self.name = name

    async def behave(self, behaviour: str, number: int) -> None:
        key = str(uuid.uuid4())
        side = self.chance.choice([(64, 64), (96, 64), (128, 128)])
        request = generate(number, side, self.chance.randint(1, 4))
        match behaviour:
            case "read":
                await self._read(request)
            case "edit":
                await self._read(edit([png(80, 64)] * self.chance.randint(1, 2), number, steps=1, width=64, height=64))
            case "cancel":
                await self._read(request, leaves_after=self.chance.randint(1, 12))
            case "deadline":
                await self._read(request, seconds=self.chance.uniform(0.05, 2.0))
            case "replay":
                request.options.idempotency_key = key
                await self._read(request)
                await self._read(request)
            case "attached":
                request.options.idempotency_key = key
                await asyncio.gather(*(self._read(request, leaves_after=after) for after in (None, None, 3)))
            case "detached":
                request.options.idempotency_key = key
                request.options.on_disconnect = image_pb2.ON_DISCONNECT_DETACH
                await self._read(request, leaves_after=1)
                if self.chance.random() < 0.5:
                    await self._read(image_pb2.AttachRequest(idempotency_key=key))
            case "cancelled by key":
                request.options.idempotency_key = key
                reading = asyncio.create_task(self._read(request))
                await asyncio.sleep(self.chance.uniform(0.0, 0.6))
                with suppress(grpc.aio.AioRpcError):  # it may be unknown yet
                    await self.stub.Cancel(image_pb2.CancelRequest(idempotency_key=key), metadata=self.metadata)
                await reading

    async def _read(self, request: object, leaves_after: int | None = None, seconds: float | None = None) -> None:
        """Read one stream, to its end or for so many events."""
        self.heard.streams += 1
        method = {image_pb2.EditRequest: self.stub.Edit, image_pb2.AttachRequest: self.stub.Attach}
        call = method.get(type(request), self.stub.Generate)(request, metadata=self.metadata, timeout=seconds)
        request_id, is_replay, count = "", False, 0
        try:
            while (event := await call.read()) is not grpc.aio.EOF:
                count += 1
                if event.HasField("accepted"):
                    request_id, is_replay = event.request_id, event.accepted.is_replay
                    self.heard.admitted.add(request_id)
                if event.HasField("completed"):
                    (self.heard.replayed if is_replay else self.heard.drawn)[request_id] = event.completed.usage
                if count == leaves_after:
                    call.cancel()
                    self.heard.left_early.add(request_id)
                    return
        except grpc.aio.AioRpcError:
            self.heard.left_early.add(request_id)
            self.heard.unknown += not request_id  # an Attach that was refused is not counted as a request


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    names = (*CALLERS, "admin")
    lines = [
        f'[callers.{name}]\ntoken_sha256 = ["{hashlib.sha256(name.encode()).hexdigest()}"]\nadmin = '
        f"{str(name == 'admin').lower()}\n"
        for name in names
    ]
    (tmp_path / "callers.toml").write_text("\n".join(lines))
    settings = {f"KLEINSERVE_{name}": value for name, value in SETTINGS.items()}
    settings["KLEINSERVE_LEDGER"] = f"sqlite:///{tmp_path}/usage.db"
    with killed("--callers", str(tmp_path / "callers.toml"), **settings) as serving:
        yield serving


async def test_streams_metrics_and_ledger_agree(server: Serving) -> None:
    """After every kind of ending they agree to the pixel, the microdollar and the step; what was spent is plausible."""
    heard = Heard()
    begin = asyncio.get_running_loop().time()
    async with opened(server.target) as channel:
        await _load(channel, heard)
        for idle in ("klein_running_requests", "klein_queue_depth"):
            await server.counts(idle, 0)
        seconds = asyncio.get_running_loop().time() - begin
        totals, records = await _ledger(channel)
    paid = {each.request_id: each for each in records if each.usage.billable}
    ended = [each for each in records if each.outcome != usage_pb2.OUTCOME_REFUSED]

    # The streams and the records.
    assert len({each.request_id for each in ended}) == len(ended), "one record for each request that was admitted"
    assert heard.admitted <= {each.request_id for each in ended}
    assert len(ended) - len(heard.admitted) <= heard.unknown
    for request_id, usage in (heard.drawn | heard.replayed).items():
        assert paid[request_id].usage == usage
    for request_id, usage in heard.replayed.items():
        assert heard.drawn.get(request_id, usage) == usage
    never_received = set(paid) - set(heard.drawn) - set(heard.replayed)
    assert never_received <= heard.left_early, "billed, and its reader neither received it nor left"

    # The metrics, the totals and the records.
    for caller in CALLERS:
        for operation in ("generate", "edit"):
            word = f"OPERATION_{operation.upper()}"
            own = [each for each in paid.values() if each.caller == caller]
            own = [each for each in own if usage_pb2.Operation.Name(each.operation) == word]
            cost, output, references = (
                sum(getattr(each.usage, name) for each in own)
                for name in ("cost_microusd", "output_megapixels", "reference_megapixels")
            )
            assert _counted(server, "klein_cost_microusd_total", caller, operation) == cost
            assert _counted(server, "klein_megapixels_total", caller, operation, "output") == output
            assert _counted(server, "klein_megapixels_total", caller, operation, "reference") == references
            for total in totals:
                if (total.caller, usage_pb2.Operation.Name(total.operation)) == (caller, word):
                    assert (total.images, total.cost_microusd) == (len(own), cost)
                    assert (total.output_megapixels, total.reference_megapixels) == (output, references)
    assert sum(total.requests for total in totals) == len(records)
    assert all(each.usage.output_pixels == each.width * each.height for each in paid.values())
    counted = server.counted("klein_requests_total")
    assert heard.streams - heard.unknown <= counted <= heard.streams

    # What was spent.
    assert sum(each.steps_run for each in ended) == server.counted("klein_step_requests_sum")
    spent = sum(each.accelerator_microseconds for each in ended) / 1e6
    busy = sum(server.counted(f'klein_stage_seconds_sum{{stage="{stage}"}}') for stage in STAGES)
    assert 0.8 * busy <= spent <= 2 * seconds, f"{spent:.2f} s of {busy:.2f} s, in {seconds:.2f} s"
    print(
        f"{heard.streams} streams, {len(paid)} paid, {Counter(each.outcome for each in records)}, "
        f"{spent:.2f} s spent of {busy:.2f} s busy in {seconds:.2f} s"
    )


async def _load(channel: grpc.aio.Channel, heard: Heard) -> None:
    chance = random.Random(11)
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, behaviour: str, name: str) -> None:
        async with room:
            await Caller(channel, name, heard, chance).behave(behaviour, number)

    async with asyncio.TaskGroup() as group:
        for number in range(REQUESTS):
            group.create_task(one(number, BEHAVIOURS[number % len(BEHAVIOURS)], chance.choice(CALLERS)))


async def _ledger(channel: grpc.aio.Channel) -> tuple[list[usage_pb2.UsageTotal], list[usage_pb2.UsageRecord]]:
    """Totals and records as an admin sees them, once nothing is written any more."""
    stub, metadata = usage_pb2_grpc.UsageServiceStub(channel), [("authorization", "Bearer admin")]
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(datetime.now(UTC) - timedelta(hours=3))
    end.FromDatetime(datetime.now(UTC) + timedelta(hours=3))
    records: list[usage_pb2.UsageRecord] = []
    while True:
        listing = usage_pb2.ListUsageRecordsRequest(start_time=start, end_time=end)
        found = [answer.record async for answer in stub.ListUsageRecords(listing, metadata=metadata)]
        answer = await stub.GetUsage(usage_pb2.GetUsageRequest(start_time=start, end_time=end), metadata=metadata)
        if len(found) == len(records):
            return list(answer.totals), found
        records = found
        await asyncio.sleep(0.5)  # the record of who ended last is written behind its stream


def _counted(server: Serving, name: str, *labels: str) -> float:
    """One series; 0 where it has not begun."""
    page = server.page("/metrics")[1]
    lines = [line for line in page.splitlines() if line.startswith(name + "{")]
    found = [line for line in lines if set(re.findall(r'"([^"]*)"', line)) == set(labels)]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0
