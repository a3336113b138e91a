"""The load: requests leave at their times, whatever has been answered. Knows the contract, no contestant.

One asyncio process beside the servers. Images are hashed, not decoded, so that it takes little of their cores.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from klein.v1 import image_pb2, image_pb2_grpc

from benchmarks.trace import Arrival

STEPS = 4
STALLED_SECONDS = 900.0  # a request without a deadline that takes longer is lost
OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
]
OK = "OK"
REFUSED = "REFUSED"  # not admitted: no room, or a deadline that cannot be met


@dataclass(frozen=True)
class Outcome:
    """How one request went; times are from its scheduled arrival. `code`: gRPC's name, REFUSED or BROKEN."""

    at_seconds: float
    edge: int
    is_edit: bool
    code: str
    seconds: float
    first_preview_seconds: float | None
    sent_late_seconds: float


def play(target: str, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Every arrival at its time, all answers awaited."""
    return asyncio.run(_play(target, arrivals, one_by_one=False))


def play_one_by_one(target: str, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Every arrival when the one before is answered."""
    return asyncio.run(_play(target, arrivals, one_by_one=True))


async def _play(target: str, arrivals: Sequence[Arrival], *, one_by_one: bool) -> list[Outcome]:
    messages = [_message(arrival) for arrival in arrivals]  # before the clock starts
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        await channel.channel_ready()
        stub = image_pb2_grpc.ImageServiceStub(channel)
        if not one_by_one:
            start = asyncio.get_running_loop().time()
            calls = (_ask(stub, a, m, start) for a, m in zip(arrivals, messages, strict=True))
            return await asyncio.gather(*calls)
        outcomes = []
        for arrival, message in zip(arrivals, messages, strict=True):
            now = asyncio.get_running_loop().time() - arrival.at_seconds
            outcomes.append(await _ask(stub, arrival, message, now))
        return outcomes


def _message(arrival: Arrival) -> image_pb2.GenerateRequest | image_pb2.EditRequest:
    options = image_pb2.ImageOptions(width=arrival.edge, height=arrival.edge, seed=arrival.seed, steps=STEPS)
    if arrival.reference is None:
        return image_pb2.GenerateRequest(prompt=arrival.prompt, options=options)
    reference = image_pb2.Reference(image=arrival.reference)
    return image_pb2.EditRequest(prompt=arrival.prompt, options=options, references=[reference])


async def _ask(
    stub: image_pb2_grpc.ImageServiceStub,
    arrival: Arrival,
    message: image_pb2.GenerateRequest | image_pb2.EditRequest,
    start: float,
) -> Outcome:
    clock, due = asyncio.get_running_loop().time, start + arrival.at_seconds
    await asyncio.sleep(max(0.0, due - clock()))
    late, first_preview = clock() - due, None
    digest, promised, code = hashlib.sha256(), b"", "BROKEN"
    try:
        call = (stub.Edit if arrival.is_edit else stub.Generate)(
            message, timeout=arrival.timeout_seconds or STALLED_SECONDS
        )
        async for event in call:
            match event.WhichOneof("event"):
                case "preview" if first_preview is None:
                    first_preview = clock() - due
                case "image_header":
                    promised = event.image_header.sha256
                case "image_chunk":
                    digest.update(event.image_chunk.data)
                case "completed" if digest.digest() == promised:
                    code = OK
    except grpc.aio.AioRpcError as error:
        code = _code(error)
    return Outcome(arrival.at_seconds, arrival.edge, arrival.is_edit, code, clock() - due, first_preview, late)


def _code(error: grpc.aio.AioRpcError) -> str:
    details = next((value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"), b"")
    is_refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED or b"DEADLINE_UNREACHABLE" in bytes(details)
    return REFUSED if is_refused else error.code().name
