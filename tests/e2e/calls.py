"""Requests, and what a caller sees of their answers, through the generated stub."""

import io

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from klein.v1 import image_pb2, image_pb2_grpc
from PIL import Image

# A window of 16 KiB in place of gRPC's megabytes: a reader that stops is felt after a few previews.
NARROW = (("grpc.http2.lookahead_bytes", 16 * 1024), ("grpc.http2.bdp_probe", 0))
NONE = image_pb2.PreviewOptions(disabled=True)


def opened(target: str, *options: tuple[str, int]) -> grpc.aio.Channel:
    """A channel of its own to a server on this machine."""
    return grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0), *options])


def generate(
    seed: int = 0, size: tuple[int, int] = (64, 64), steps: int = 4, **options: object
) -> image_pb2.GenerateRequest:
    """A generation; `options` are ImageOptions' other fields."""
    made = image_pb2.ImageOptions(width=size[0], height=size[1], steps=steps, seed=seed, **options)
    return image_pb2.GenerateRequest(prompt="a red circle on a blue background", options=made)


def edit(references: list[bytes], seed: int = 0, **options: object) -> image_pb2.EditRequest:
    """An edit of these files; `options` are ImageOptions' fields."""
    return image_pb2.EditRequest(
        prompt="make it green",
        references=[image_pb2.Reference(image=data) for data in references],
        options=image_pb2.ImageOptions(seed=seed, **options),
    )


def png(width: int = 64, height: int = 64, colour: str = "red") -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


async def final(channel: grpc.aio.Channel, request: object) -> tuple[np.ndarray, image_pb2.Completed]:
    """The final pixels of a request and what completed says."""
    stub = image_pb2_grpc.ImageServiceStub(channel)
    call = stub.Edit(request) if isinstance(request, image_pb2.EditRequest) else stub.Generate(request)
    data, completed = b"", None
    async for event in call:
        data += event.image_chunk.data
        completed = event.completed if event.HasField("completed") else completed
    assert completed is not None
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGBA")).astype(int), completed


async def refused(call: "grpc.aio.UnaryStreamCall") -> tuple[grpc.StatusCode, str, dict[str, object]]:
    """Status, reason and details of a call that must fail, read to its end."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _drained(call)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    details: dict[str, object] = {}
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
        for packed in status.details:
            if packed.Is(kind.DESCRIPTOR):
                unpacked = kind()
                packed.Unpack(unpacked)
                details[kind.DESCRIPTOR.name] = unpacked
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.domain == "klein.v1"
    assert info.metadata["request_id"]
    return caught.value.code(), info.reason, details


async def _drained(call: "grpc.aio.UnaryStreamCall") -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def until(call: "grpc.aio.UnaryStreamCall", kind: str) -> image_pb2.ImageEvent:
    """Read up to the first event of this kind."""
    while (event := await call.read()) is not grpc.aio.EOF:
        if event.WhichOneof("event") == kind:
            return event
    raise AssertionError(f"the stream ended without {kind}")
