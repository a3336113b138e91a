"""Refusals that no single field explains: many at once, the queue's bytes, gRPC's own."""

import struct
import zlib

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import edit, final, generate, opened, png, refused, until
from tests.e2e.conftest import ENDLESS, Serving

IMAGES, USAGE = "/klein.v1.ImageService/", "/klein.v1.UsageService/"
METHODS = [IMAGES + name for name in ("Generate", "Edit", "Attach", "Cancel", "GetCapabilities")]
METHODS += [USAGE + name for name in ("GetUsage", "ListUsageRecords")]
HANDLED = 'grpc_server_handled_total{grpc_code="InvalidArgument"'
STATUS_BYTES_MAX = 4096
MIB = 1024 * 1024
EMPTY_CHUNK = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))  # of a PNG


async def test_every_violation_in_one_answer(channel: grpc.aio.Channel) -> None:
    """However many fields are bad, one answer under 4 KiB names them all, before any reference is decoded."""
    options = image_pb2.ImageOptions(
        width=100, height=40, steps=99, guidance_scale=2.0, client_tag="😀" * 64, idempotency_key="é" * 99,
        on_disconnect="ON_DISCONNECT_DETACH", priority=9,
        output=image_pb2.OutputOptions(quality=101, format="IMAGE_FORMAT_RAW_RGBA", embed_prompt=True, background=7),
        preview=image_pb2.PreviewOptions(disabled=True, max_edge=5, format=8),
    )  # fmt: skip
    options.MergeFromString(b"\x88\x01\x01")  # field 17
    request = image_pb2.EditRequest(prompt=" ", references=[image_pb2.Reference(image=b"x")] * 5, options=options)
    call = image_pb2_grpc.ImageServiceStub(channel).Edit(request)
    code, reason, details = await refused(call)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    own = "#17 width height steps guidance_scale client_tag idempotency_key priority"
    nested = "output.quality output.format output.embed_prompt output.background"
    nested += " preview.disabled preview.max_edge preview.format"
    wanted = {"prompt", "references", *(f"options.{name}" for name in f"{own} {nested}".split())}
    assert {violation.field for violation in bad.field_violations} == wanted
    assert len(dict(await call.trailing_metadata())["grpc-status-details-bin"]) < STATUS_BYTES_MAX


@pytest.mark.parametrize("method", METHODS)
async def test_message_that_cannot_be_parsed(serving: Serving, channel: grpc.aio.Channel, method: str) -> None:
    """Bytes that are no message are refused like every bad request, with details and request id, and counted.

    To the one message that has no fields they are an unknown one.
    """
    before = serving.counted(HANDLED)
    call = channel.unary_stream(method)(b"\x0a\x02\xff\xfe")
    code, reason, details = await refused(call)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [v.field for v in bad.field_violations] == ["#1" if method.endswith("GetCapabilities") else "request"]
    assert serving.counted(HANDLED) == before + 1


@pytest.mark.parametrize("method", ["Attach", "Cancel", "GetCapabilities"])
async def test_unknown_fields_by_name(channel: grpc.aio.Channel, method: str) -> None:
    """A field that the contract does not have is refused by its number, in the messages that make no image too."""
    known = b"" if method == "GetCapabilities" else image_pb2.AttachRequest(idempotency_key="k").SerializeToString()
    call = channel.unary_stream(f"/klein.v1.ImageService/{method}")(known + b"\x98\x06\x01")  # field 99
    code, reason, details = await refused(call)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in bad.field_violations] == ["#99"]


async def test_thousands_of_violations(channel: grpc.aio.Channel) -> None:
    """Unknown fields are named one by one or, where they are very many, by their bytes, in an answer under 4 KiB."""
    unknown = b"".join(bytes([0x80 | (i & 15) << 3, 0x08 | i >> 4, 0x00]) for i in range(2, 112))
    for count, said in ((1, "unknown field;"), (50, f"{50 * len(unknown)} bytes of unknown fields;")):
        request = image_pb2.GenerateRequest.FromString(unknown * count)
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(request)
        code, reason, details = await refused(call)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert said in str(details["BadRequest"])
        assert len(dict(await call.trailing_metadata())["grpc-status-details-bin"]) < STATUS_BYTES_MAX


async def test_a_hostile_header_holds_nobody_up(channel: grpc.aio.Channel) -> None:
    """A file of hundreds of thousands of empty chunks is refused by its structure, before anybody decodes it."""
    file = png()
    file = file[:33] + EMPTY_CHUNK * (9 * MIB // len(EMPTY_CHUNK)) + file[33:]  # between the header and the pixels
    call = image_pb2_grpc.ImageServiceStub(channel).Edit(edit([png(), file], steps=1))
    code, reason, details = await refused(call)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REFERENCE_UNSUPPORTED")
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [violation.field for violation in bad.field_violations] == ["references[1].image"]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"preview": {"format": "PREVIEW_FORMAT_LATENT", "max_edge": 64}}, ["preview.max_edge", "preview.format"]),
        ({"output": {"format": "IMAGE_FORMAT_JPEG", "embed_prompt": True}}, ["output.embed_prompt", "output.format"]),
        ({"output": {"format": "IMAGE_FORMAT_JPEG", "quality": 101}}, ["output.quality"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale"]),
        ({"height": 64}, ["width", "height"]),
    ],
)
async def test_rules_across_fields(channel: grpc.aio.Channel, options: dict[str, object], fields: list[str]) -> None:
    """A rule across fields names all of them."""
    request = image_pb2.GenerateRequest(prompt="a red circle", options=image_pb2.ImageOptions(**options))
    _, reason, details = await refused(image_pb2_grpc.ImageServiceStub(channel).Generate(request))
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert reason == "INVALID_FIELD"
    assert [violation.field for violation in bad.field_violations] == [f"options.{field}" for field in fields]


async def test_prompt_bytes(channel: grpc.aio.Channel) -> None:
    """A prompt of 32,768 bytes is cut to the model's tokens, and said to be; one more byte is refused."""
    request = generate(steps=1)
    request.prompt = "a " * 16_384
    call = image_pb2_grpc.ImageServiceStub(channel).Generate(request)
    assert (await until(call, "accepted")).accepted.prompt_truncated
    await until(call, "completed")
    request.prompt += "a"
    _, reason, details = await refused(image_pb2_grpc.ImageServiceStub(channel).Generate(request))
    assert (reason, "prompt" in str(details["BadRequest"])) == ("INVALID_FIELD", True)


async def test_queue_bytes(single: Serving) -> None:
    """A queue that holds too many bytes of references refuses with QUEUE_FULL and a delay; alone they are taken."""
    async with opened(single.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        large = edit([png(256, 256)], width=64, height=64, steps=1)  # 1 KB of PNG, 262,144 bytes of RGBA
        await final(channel, large)
        running = stub.Generate(generate(0, (256, 256), ENDLESS))
        await until(running, "progress")
        waiting = stub.Generate(generate(0, (128, 128), priority="PRIORITY_BATCH"))
        await until(waiting, "queued")
        code, reason, details = await refused(stub.Edit(large))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert set(details) == {"ErrorInfo", "RetryInfo"}
        running.cancel()
        await until(waiting, "completed")


async def test_queue_bytes_as_sent(single: Serving) -> None:
    """What a waiting request's message holds counts, too: a file of 90 KB that is 16 KB of pixels."""
    async with opened(single.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        running = stub.Generate(generate(0, (256, 256), ENDLESS))
        await until(running, "progress")
        file = png()
        padded = edit([file[:33] + EMPTY_CHUNK * 6000 + file[33:]], steps=1, priority="PRIORITY_BATCH")
        waiting = stub.Edit(padded)
        await until(waiting, "queued")
        _, reason, _ = await refused(stub.Edit(padded))
        assert reason == "QUEUE_FULL"
        running.cancel()
        await until(waiting, "completed")


async def test_grpc_refuses(channel: grpc.aio.Channel) -> None:
    """What gRPC refuses itself, a message over the limit and an unknown method, has its status and no details."""
    stub = image_pb2_grpc.ImageServiceStub(channel)
    unknown = channel.unary_unary("/klein.v1.ImageService/Paint")
    calls = {
        grpc.StatusCode.RESOURCE_EXHAUSTED: stub.Edit(edit([bytes(9 * 1024 * 1024)] * 5)).read(),
        grpc.StatusCode.UNIMPLEMENTED: unknown(b""),
    }
    for code, call in calls.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code
        assert rpc_status.from_call(caught.value) is None
    await final(channel, generate())
