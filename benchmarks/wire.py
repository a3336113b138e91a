"""A request on the wire, as the contract has it (HOST:PORT) or over HTTP (http://…), told as what happened when."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

import grpc
from klein.v1 import image_pb2, image_pb2_grpc

from benchmarks.trace import Arrival

STEPS = 4
STALLED_SECONDS = 900.0  # a request without a deadline that takes longer is lost
LINE_BYTES_MAX = 64 * 1024 * 1024
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]
KEY = "klein-idempotency-key"  # in the metadata, as kleinclient sends it too

PREVIEW = "PREVIEW"
OK, BROKEN = "OK", "BROKEN"
REFUSED = "REFUSED"  # not admitted: no room, or a deadline that cannot be met

Question: TypeAlias = Callable[[], AsyncIterator[str]]  # asked when called: PREVIEW at each, then how it ended
Image = image_pb2.GenerateRequest | image_pb2.EditRequest


@asynccontextmanager
async def to(target: str) -> AsyncIterator[Callable[[Arrival], Question]]:
    """What makes questions to `target`, which answers already."""
    if target.startswith("http://"):
        yield lambda arrival: partial(_post, target, _json(arrival), arrival.timeout_seconds)
        return
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        await channel.channel_ready()
        stub = image_pb2_grpc.ImageServiceStub(channel)
        yield lambda arrival: partial(_call, stub, _message(arrival), arrival.timeout_seconds)


def _message(arrival: Arrival) -> Image:
    options = image_pb2.ImageOptions(width=arrival.edge, height=arrival.edge, seed=arrival.seed, steps=STEPS)
    options.idempotency_key = arrival.key
    if arrival.reference is None:
        return image_pb2.GenerateRequest(prompt=arrival.prompt, options=options)
    reference = image_pb2.Reference(image=arrival.reference)
    return image_pb2.EditRequest(prompt=arrival.prompt, options=options, references=[reference])


async def _call(
    stub: image_pb2_grpc.ImageServiceStub, message: Image, timeout_seconds: float | None
) -> AsyncIterator[str]:
    digest, promised = hashlib.sha256(), b""
    method = stub.Edit if isinstance(message, image_pb2.EditRequest) else stub.Generate
    try:
        metadata = ((KEY, message.options.idempotency_key),) if message.options.idempotency_key else ()
        async for event in method(message, timeout=timeout_seconds or STALLED_SECONDS, metadata=metadata):
            match event.WhichOneof("event"):
                case "preview":
                    yield PREVIEW
                case "image_header":
                    promised = event.image_header.sha256
                case "image_chunk":
                    digest.update(event.image_chunk.data)
                case "completed":
                    yield OK if digest.digest() == promised else BROKEN
    except grpc.aio.AioRpcError as error:
        yield _code(error)


def _code(error: grpc.aio.AioRpcError) -> str:
    details = next((value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"), b"")
    is_refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED or b"DEADLINE_UNREACHABLE" in bytes(details)
    return REFUSED if is_refused else str(error.code().name)


def _json(arrival: Arrival) -> bytes:
    references = [base64.b64encode(arrival.reference).decode()] if arrival.reference else []
    asked = {"prompt": arrival.prompt, "width": arrival.edge, "seed": arrival.seed, "steps": STEPS}
    return json.dumps(asked | {"references": references}).encode()


async def _post(url: str, body: bytes, timeout_seconds: float | None) -> AsyncIterator[str]:
    """HTTP/1.0, so that the answer is not cut into chunks: lines [step, base64], step 0 the image."""
    to = urlsplit(url)
    head = f"POST {to.path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer = None
    try:
        async with asyncio.timeout(timeout_seconds or STALLED_SECONDS):
            reader, writer = await asyncio.open_connection(to.hostname, to.port, limit=LINE_BYTES_MAX)
            writer.write(head.encode() + body)
            while line := await reader.readline():
                if line.startswith(b"["):
                    step, data = json.loads(line)
                    hashlib.sha256(base64.b64decode(data))  # as much work as beside the contract's stream
                    yield PREVIEW if step else OK
                    if step == 0:
                        return
    except TimeoutError:
        yield "DEADLINE_EXCEEDED"
    except OSError:
        yield BROKEN
    finally:
        if writer is not None:
            writer.close()
