"""Keys, attaching and detaching, through a real server (desk/keys.py, desk/kept.py)."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import edit, generate, opened, png, refused, until
from tests.e2e.conftest import Serving, announced, launched

LONG = {"size": (256, 256), "steps": 50}


@pytest.fixture
async def stub(billing: Serving) -> AsyncIterator[image_pb2_grpc.ImageServiceStub]:
    async with opened(billing.target) as channel:
        yield image_pb2_grpc.ImageServiceStub(channel)


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


@dataclass
class Told:
    """What one stream said."""

    kinds: list[str] = field(default_factory=list)
    request_ids: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    sequence: list[int] = field(default_factory=list)
    data: bytes = b""
    accepted: image_pb2.Accepted | None = None
    completed: image_pb2.Completed | None = None

    @property
    def is_in_order(self) -> bool:
        return self.sequence == list(range(len(self.sequence)))


async def told(call: "grpc.aio.UnaryStreamCall") -> Told:
    heard = Told()
    while (event := await call.read()) is not grpc.aio.EOF:
        heard.kinds.append(event.WhichOneof("event"))
        heard.request_ids.add(event.request_id)
        heard.tags.add(event.client_tag)
        heard.sequence.append(event.sequence)
        heard.data += event.image_chunk.data
        heard.accepted = event.accepted if event.HasField("accepted") else heard.accepted
        heard.completed = event.completed if event.HasField("completed") else heard.completed
    return heard


def unseeded(key: str, **options: object) -> image_pb2.GenerateRequest:
    request = generate(0, idempotency_key=key, **options)
    request.options.ClearField("seed")
    return request


async def test_the_same_at_once_is_one_job(billing: Serving, stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """Eight equal requests are one image and one bill; each stream has its own numbers and tag; a ninth is refused."""
    paid = billing.counted("klein_cost_microusd_total")
    blocking = stub.Generate(generate(1, (256, 256), 50))
    await until(blocking, "started")
    calls = [stub.Generate(unseeded(key, client_tag=f"tag {i}")) for i in range(8)]
    for call in calls:
        await until(call, "accepted")
    code, reason, _ = await refused(stub.Generate(unseeded(key)))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    blocking.cancel()
    streams = await asyncio.gather(*(told(call) for call in calls))
    assert len({stream.data for stream in streams}) == 1
    assert len(set.union(*(stream.request_ids for stream in streams))) == 1
    assert [stream.tags for stream in streams] == [{f"tag {i}"} for i in range(8)]
    assert billing.counted("klein_cost_microusd_total") == paid + 14_000


async def test_later_it_is_replayed(billing: Serving, stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """Options as values, without preview, priority and tag, make it the same; the replay says so and costs nothing."""
    first = await told(stub.Generate(unseeded(key)))
    paid = billing.counted("klein_cost_microusd_total")
    again = unseeded(key, priority="PRIORITY_BATCH", client_tag="x", preview=image_pb2.PreviewOptions(disabled=True))
    again.options.guidance_scale = 1.0  # the default, said
    for call in (stub.Generate(again), stub.Attach(image_pb2.AttachRequest(idempotency_key=key))):
        replay = await told(call)
        assert replay.kinds == ["accepted", "started", "image_header", "image_chunk", "completed"]
        assert replay.is_in_order
        assert (replay.data, replay.request_ids) == (first.data, first.request_ids)
        assert first.accepted is not None
        assert replay.accepted is not None
        assert (first.accepted.is_replay, replay.accepted.is_replay) == (False, True)
        assert replay.accepted.seed == first.accepted.seed
        assert replay.completed is not None
        assert first.completed is not None
        assert replay.completed.usage == first.completed.usage
    assert billing.counted("klein_cost_microusd_total") == paid


@pytest.mark.parametrize("change", ["prompt", "seed", "size", "steps", "format"])
async def test_another_request_under_a_used_key(stub: image_pb2_grpc.ImageServiceStub, key: str, change: str) -> None:
    """Whatever decides the image makes it another request, which is refused."""
    request = unseeded(key)
    await told(stub.Generate(request))
    other = unseeded(key)
    match change:
        case "prompt":
            other.prompt += "!"
        case "seed":
            other.options.seed = 0
        case "size":
            other.options.width = 80
        case "steps":
            other.options.steps = 3
        case "format":
            other.options.output.format = image_pb2.IMAGE_FORMAT_WEBP
    code, reason, _ = await refused(stub.Generate(other))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")


async def test_references_are_compared_by_their_bytes(stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """The same edit is replayed, one with another reference refused."""
    first = await told(stub.Edit(edit([png()], 1, idempotency_key=key)))
    assert (await told(stub.Edit(edit([png()], 1, idempotency_key=key)))).data == first.data
    _, reason, _ = await refused(stub.Edit(edit([png(colour="blue")], 1, idempotency_key=key)))
    assert reason == "IDEMPOTENCY_KEY_REUSED"


async def test_metadata_that_says_another_key(stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """Proxies route by the metadata's key, so it must be the message's."""
    call = stub.Generate(unseeded(key), metadata=[("klein-idempotency-key", "another")])
    _, _, details = await refused(call)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "options.idempotency_key"
    await told(stub.Generate(unseeded(key), metadata=[("klein-idempotency-key", key)]))
    other = [("klein-idempotency-key", "another")]
    _, _, details = await refused(stub.Attach(image_pb2.AttachRequest(idempotency_key=key), metadata=other))
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "idempotency_key"
    with pytest.raises(grpc.aio.AioRpcError, match="must be equal"):
        await stub.Cancel(image_pb2.CancelRequest(idempotency_key=key), metadata=other)


async def test_a_cancelled_job_frees_its_key(billing: Serving, stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """Whether its last reader left or it was cancelled by its key, the next request is drawn anew."""
    call = stub.Generate(unseeded(key, **LONG))
    await until(call, "started")
    call.cancel()
    await billing.counts("klein_running_requests", 0)
    again = stub.Generate(unseeded(key, **LONG))
    accepted = (await until(again, "accepted")).accepted
    assert not accepted.is_replay
    await stub.Cancel(image_pb2.CancelRequest(idempotency_key=key))
    code, reason, _ = await refused(again)
    assert (code, reason) == (grpc.StatusCode.CANCELLED, "CANCELLED")
    assert not (await told(stub.Generate(unseeded(key)))).accepted.is_replay


async def test_a_detached_job_goes_on(billing: Serving, stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """Its reader leaves, it is finished, billed and kept; whoever attaches while it runs sees the present state."""
    paid = billing.counted("klein_cost_microusd_total")
    call = stub.Generate(unseeded(key, **LONG, on_disconnect="ON_DISCONNECT_DETACH"), timeout=60)
    await until(call, "progress")
    call.cancel()
    attached = await told(stub.Attach(image_pb2.AttachRequest(idempotency_key=key)))
    assert attached.kinds[:3] == ["accepted", "started", "progress"]
    assert billing.counted("klein_cost_microusd_total") == paid + 14_000
    assert (await told(stub.Generate(unseeded(key, **LONG)))).data == attached.data


async def test_cancel_forgets_what_is_kept(billing: Serving, stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """The key is free then, what was billed stays billed, and a second cancel knows nothing."""
    kept = billing.counted("klein_kept_results")
    await told(stub.Generate(unseeded(key)))
    await stub.Cancel(image_pb2.CancelRequest(idempotency_key=key))
    assert billing.counted("klein_kept_results") <= kept
    for call in (
        stub.Attach(image_pb2.AttachRequest(idempotency_key=key)),
        image_pb2_grpc.ImageServiceStub(opened(billing.target)).Attach(image_pb2.AttachRequest(idempotency_key="x")),
    ):
        code, reason, _ = await refused(call)
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_KEY")
    with pytest.raises(grpc.aio.AioRpcError, match="no job has this key"):
        await stub.Cancel(image_pb2.CancelRequest(idempotency_key=key))


async def test_delivered_and_no_longer_kept(billing: Serving, stub: image_pb2_grpc.ImageServiceStub) -> None:
    """What others' results pushed off the shelf is RESULT_GONE with the recorded usage, and is not billed again."""
    keys = (str(uuid.uuid4()) for _ in itertools.count())
    first = next(keys)
    raw = {"size": (208, 208), "steps": 1, "output": image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")}
    await told(stub.Generate(unseeded(first, **raw)))
    for _ in range(2):  # 173 KB each; a caller keeps 500 KB
        await told(stub.Generate(unseeded(next(keys), **raw)))
    paid = billing.counted("klein_cost_microusd_total")
    for call in (
        stub.Generate(unseeded(first, **raw)),
        stub.Attach(image_pb2.AttachRequest(idempotency_key=first)),
    ):
        code, reason, details = await refused(call)
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESULT_GONE")
        info = details["ErrorInfo"]
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert info.metadata["cost_microusd"] == "14000"
    assert billing.counted("klein_cost_microusd_total") == paid


async def test_a_detached_job_that_cannot_be_kept_is_refused(stub: image_pb2_grpc.ImageServiceStub, key: str) -> None:
    """Its raw size is more than a caller's share of the shelf."""
    request = unseeded(key, size=(512, 512), steps=1, on_disconnect="ON_DISCONNECT_DETACH")
    code, reason, _ = await refused(stub.Generate(request))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/usage.db"


async def test_after_a_crash_the_key_still_knows(ledger: str, key: str) -> None:
    """What was billed, not delivered, is drawn again with its seed and billed no more; what was delivered is gone."""
    delivered = str(uuid.uuid4())
    with launched("--ledger", ledger) as process:
        server = announced(process)
        async with opened(server.target) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            await told(stub.Generate(unseeded(delivered)))
            raw = image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")
            call = stub.Generate(unseeded(key, size=(256, 256), steps=1, output=raw))
            seed = (await until(call, "accepted")).accepted.seed
            await until(call, "image_header")
            process.kill()
    with launched("--ledger", ledger) as process:
        server = announced(process)
        async with opened(server.target) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            again = await told(stub.Generate(unseeded(key, size=(256, 256), steps=1, output=raw)))
            assert again.accepted is not None
            assert (again.accepted.is_replay, again.accepted.seed) == (True, seed)
            assert len(again.data) == 256 * 256 * 4
            assert server.counted("klein_cost_microusd_total") == 0
            _, reason, _ = await refused(stub.Generate(unseeded(delivered)))
            assert reason == "RESULT_GONE"
