"""Streams, cancellation, deadlines, errors and drain: a real server ({app,server}.py, rpc/{servicer,transport}.py)."""

import asyncio
import io
import re
import signal
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from klein.v1 import image_pb2, image_pb2_grpc, usage_pb2, usage_pb2_grpc
from PIL import Image

from tests.e2e.calls import edit, final, generate, opened, png, refused, until
from tests.e2e.conftest import Serving, served


async def test_order(channel: grpc.aio.Channel) -> None:
    """The events come in the contract's order, numbered from 0, with a preview after every step."""
    call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(client_tag="mine"))
    events = [event async for event in call]
    kinds = [event.WhichOneof("event") for event in events]
    assert [event.sequence for event in events] == list(range(len(events)))
    assert {event.client_tag for event in events} == {"mine"}
    assert dict(await call.initial_metadata())["klein-request-id"] == events[0].request_id
    order = r"accepted (queued )*started ((progress|preview) )+image_header image_chunk completed"
    assert re.fullmatch(order, " ".join(kinds))
    steps = [event.progress.step for event in events if event.HasField("progress")]
    assert steps == sorted({*steps} & {1, 2, 3, 4})  # of two not taken yet the newer is sent
    assert steps[-1] == 4
    assert [event.preview.step for event in events if event.HasField("preview")][-1] == 4
    assert not events[0].accepted.estimated_usage.billable
    assert events[-1].completed.usage.billable
    assert events[-1].completed.usage.cost_microusd == 14_000


async def test_who_starts_at_once_is_told_no_position(channel: grpc.aio.Channel) -> None:
    """Nobody hears of a queue within 20 ms of coming, although others come and go all the time."""
    stub = image_pb2_grpc.ImageServiceStub(channel)

    async def one_by_one(first_seed: int) -> None:
        for seed in range(first_seed, first_seed + 30):
            events = [event async for event in stub.Generate(generate(seed, steps=1))]
            waits = [event.started.queue_wait.ToNanoseconds() for event in events if event.HasField("started")]
            assert len(waits) == 1
            assert waits[0] >= 20e6 or not any(event.HasField("queued") for event in events)

    await asyncio.gather(one_by_one(0), one_by_one(100))


async def test_together_equals_alone(sharing: Serving) -> None:
    """Sixteen concurrent requests of mixed sizes, steps and references are what each is alone, within 2/255."""
    sizes = [(64, 64), (128, 64), (96, 128), (256, 256)]
    colours = ["red", "green", "blue", "yellow"]
    requests: list[object] = []
    for i in range(16):
        width, height = sizes[i % 4]
        references = [png(64 + 16 * k, 64, colours[(i + k) % 4]) for k in range(i % 5)]
        options = {"width": width, "height": height, "steps": 1 + i % 8}
        requests.append(edit(references, i, **options) if references else generate(i, (width, height), 1 + i % 8))
    async with opened(sharing.target) as channel:
        # Others are there from before the first to after the last: more join a step the more wait for theirs.
        others = [image_pb2_grpc.ImageServiceStub(channel).Generate(generate(i, steps=50)) for i in range(12)]
        await asyncio.gather(*(until(other, "accepted") for other in others))
        together = await asyncio.gather(*(final(channel, request) for request in requests))
        assert max(completed.max_step_requests for _, completed in together) > 4
        assert sharing.counted("klein_step_requests_sum") > sharing.counted("klein_step_requests_count")
        for other in others:
            other.cancel()
        for idle in ("klein_running_requests", "klein_queue_depth"):
            await sharing.counts(idle, 0)
        for request, (picture, _) in zip(requests, together, strict=True):
            alone, completed = await final(channel, request)
            assert completed.max_step_requests == 1
            assert np.abs(picture - alone).max() <= 2


async def test_one_of_four_cancelled(serving: Serving, channel: grpc.aio.Channel) -> None:
    """Cancelling one of four mid-way leaves the other three what they are alone."""
    stub = image_pb2_grpc.ImageServiceStub(channel)
    before = serving.counted('klein_cancelled_total{where="step"}')
    others = [asyncio.create_task(final(channel, generate(i, (128, 128), 30))) for i in range(3)]
    call = stub.Generate(generate(9, (128, 128), 30))
    async for event in call:
        if event.progress.step >= 2:
            break
    call.cancel()
    made = [picture for picture, _ in await asyncio.gather(*others)]
    for i, picture in enumerate(made):
        alone, _ = await final(channel, generate(i, (128, 128), 30))
        assert np.abs(picture - alone).max() <= 2
    assert serving.counted('klein_cancelled_total{where="step"}') == before + 1
    assert serving.counted("klein_running_requests") == 0


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (image_pb2.GenerateRequest(prompt="  "), ["prompt"]),
        (generate(size=(100, 64)), ["options.width"]),
        (generate(size=(64, 0)), ["options.width", "options.height"]),
        (generate(size=(8192, 1024)), ["options.width", "options.height"]),
        (generate(steps=51), ["options.steps"]),
        (generate(guidance_scale=2.0), ["options.guidance_scale"]),
        (generate(output=image_pb2.OutputOptions(quality=5)), ["options.output.quality", "options.output.format"]),
        (
            generate(output=image_pb2.OutputOptions(format="IMAGE_FORMAT_JPEG", background="BACKGROUND_TRANSPARENT")),
            ["options.output.background", "options.output.format"],
        ),
        (
            generate(preview=image_pb2.PreviewOptions(disabled=True, max_edge=64)),
            ["options.preview.disabled", "options.preview.max_edge"],
        ),
        (generate(preview=image_pb2.PreviewOptions(max_edge=8)), ["options.preview.max_edge"]),
        (generate(idempotency_key="a\nb"), ["options.idempotency_key"]),
        (generate(idempotency_key="a" * 129), ["options.idempotency_key"]),
        (generate(on_disconnect="ON_DISCONNECT_DETACH"), ["options.on_disconnect", "options.idempotency_key"]),
        (image_pb2.GenerateRequest(prompt="\0\u200b\x1b\n"), ["prompt"]),
        (generate(client_tag="x" * 129), ["options.client_tag"]),
        (generate(priority=9), ["options.priority"]),
        (edit([]), ["references"]),
        (edit([png()] * 5), ["references"]),
        (image_pb2.GenerateRequest.FromString(b"\x0a\x01a\x12\x03\x88\x01\x01"), ["options.#17"]),
        (generate(size=(100, 64), steps=99), ["options.width", "options.steps"]),
    ],
)
async def test_invalid_field(channel: grpc.aio.Channel, request_: object, fields: list[str]) -> None:
    """A bad field is refused by name, all of them in one answer."""
    stub = image_pb2_grpc.ImageServiceStub(channel)
    call = stub.Edit(request_) if isinstance(request_, image_pb2.EditRequest) else stub.Generate(request_)
    code, reason, details = await refused(call)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in bad.field_violations] == fields


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "REFERENCE_UNREADABLE"),
        (b"no image", "REFERENCE_UNREADABLE"),
        (png()[:-40], "REFERENCE_UNREADABLE"),
        (png(32, 32), "REFERENCE_UNSUPPORTED"),
        (png(1024, 64), "REFERENCE_UNSUPPORTED"),
        (png() + b"\0" * (10 * 1024 * 1024), "REFERENCE_TOO_LARGE"),
        (png(6000, 6000), "REFERENCE_TOO_LARGE"),
    ],
)
async def test_bad_reference(channel: grpc.aio.Channel, data: bytes, reason: str) -> None:
    """A reference that cannot be used is refused by its place in the request."""
    code, given, details = await refused(image_pb2_grpc.ImageServiceStub(channel).Edit(edit([png(), data])))
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (code, given) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert bad.field_violations[0].field == "references[1].image"


async def test_of_two_damaged_references_the_first_is_named(channel: grpc.aio.Channel) -> None:
    """Which is told does not depend on which is found first: the first takes long to decode."""
    bad = [damaged(1500), damaged(64)]
    code, given, details = await refused(image_pb2_grpc.ImageServiceStub(channel).Edit(edit(bad)))
    told = details["BadRequest"]
    assert isinstance(told, error_details_pb2.BadRequest)
    assert (code, given) == (grpc.StatusCode.INVALID_ARGUMENT, "REFERENCE_UNREADABLE")
    assert [violation.field for violation in told.field_violations] == ["references[0].image"]


def damaged(edge: int) -> bytes:
    """A PNG of noise whose last pixels are spoiled, which its header does not tell."""
    file = io.BytesIO()
    Image.effect_noise((edge, edge), 80).save(file, "PNG", compress_level=1)
    data = bytearray(file.getvalue())
    data[-60] ^= 0xFF
    return bytes(data)


async def test_not_implemented(channel: grpc.aio.Channel) -> None:
    """Without a ledger what it would hold says that it is not implemented."""
    usage, when = usage_pb2_grpc.UsageServiceStub(channel), {"start_time": Timestamp(), "end_time": Timestamp()}
    code, reason, _ = await refused(usage.ListUsageRecords(usage_pb2.ListUsageRecordsRequest(**when)))
    assert (code, reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await usage.GetUsage(usage_pb2.GetUsageRequest(**when))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_same_bytes(channel: grpc.aio.Channel) -> None:
    """The same request alone gives the same file."""
    hashes = set()
    for _ in range(2):
        async for event in image_pb2_grpc.ImageServiceStub(channel).Generate(generate(3)):
            if event.HasField("image_header"):
                hashes.add(event.image_header.sha256)
    assert len(hashes) == 1


async def test_transparent(channel: grpc.aio.Channel) -> None:
    """A transparent background is native on mini: a subject with alpha 255, colour 0 where alpha is 0."""
    output = image_pb2.OutputOptions(background="BACKGROUND_TRANSPARENT")
    request = generate(size=(128, 128), output=output)
    request.prompt = "a red circle"
    picture, _ = await final(channel, request)
    alpha = picture[..., 3]
    assert alpha.max() == 255
    assert (alpha == 0).mean() > 0.3
    assert not picture[alpha == 0][:, :3].any()


async def test_rpcs_are_counted_by_their_status(serving: Serving, channel: grpc.aio.Channel) -> None:
    """Each RPC counts once as started and once as handled, with the status that its caller saw."""
    stub = image_pb2_grpc.ImageServiceStub(channel)

    def handled(method: str, code: str) -> str:
        return f'grpc_server_handled_total{{grpc_code="{code}",grpc_method="{method}"'

    names = [handled("Generate", "OK"), handled("Generate", "InvalidArgument"), handled("Generate", "Canceled")]
    before = [serving.counted(name) for name in names]
    await stub.GetCapabilities(image_pb2.GetCapabilitiesRequest())
    await final(channel, generate())
    await refused(stub.Generate(generate(steps=51)))
    call = stub.Generate(generate(size=(256, 256), steps=50))
    await until(call, "progress")
    call.cancel()
    await serving.counts(names[2], before[2] + 1)
    assert [serving.counted(name) - base for name, base in zip(names, before, strict=True)] == [1, 1, 1]
    assert serving.counted(handled("GetCapabilities", "OK")) >= 1
    assert serving.counted("grpc_server_started_total") >= serving.counted("grpc_server_handled_total") >= 4


async def test_health_and_pages(serving: Serving, channel: grpc.aio.Channel) -> None:
    """A warm server is SERVING for all its services, and its probes say so."""
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "klein.v1.ImageService", "klein.v1.UsageService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert serving.page("/healthz")[0] == serving.page("/readyz")[0] == 200
    assert serving.page("/nothing")[0] == 404


async def test_full_queue_and_drain(tmp_path: Path) -> None:
    """A full queue refuses with QUEUE_FULL and a retry delay; SIGTERM finishes what was admitted and takes no more."""
    config = tmp_path / "small.toml"
    config.write_text("queue_requests_max = 1\nstep_tokens_max = 1\n")
    with served("--config", str(config)) as server:
        async with opened(server.target) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            running = stub.Generate(generate(size=(256, 256), steps=50))
            await until(running, "progress")
            waiting = stub.Generate(generate(size=(128, 128), priority="PRIORITY_BATCH"))
            await until(waiting, "queued")
            code, reason, details = await refused(stub.Generate(generate()))
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert "RetryInfo" in details
            server.process.send_signal(signal.SIGTERM)
            # Until the signal has arrived; gRPC itself cancels what is on its way then (docs/OPERATIONS.md, Drain).
            before = code, _ = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED
            while code in before:
                code = await stub.Generate(generate()).code()
            assert code is grpc.StatusCode.UNAVAILABLE  # its connection was told to go, and there is no other
            await until(running, "completed")
            await until(waiting, "completed")
        assert await asyncio.to_thread(server.process.wait, 60) == 0
