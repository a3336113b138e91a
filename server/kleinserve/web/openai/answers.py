"""What calls write, as OpenAI's answers: transports of calls."""

import asyncio
import base64
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from klein.v1 import image_pb2

from kleinserve.errors import KleinError
from kleinserve.web.http import Exchange
from kleinserve.web.openai import refusals
from kleinserve.web.openai.fields import Asked

# Of the image in one piece, which has the stall limit: as base64 32 KiB, so a line of 2 KiB/s passes at the default.
_PIECE_BYTES = 24 * 1024  # a multiple of 3: pieces of base64 then join


class Kept:
    """A transport that gives each message to `take`. `error`: why the call was refused."""

    def __init__(self, exchange: Exchange, take: Callable[[bytes], None]):
        self.peer, self.metadata, self.credentials = exchange.peer, exchange.metadata, exchange.credentials
        self.seconds_left, self._take = exchange.seconds_left, take
        self.request_id = ""
        self.error: KleinError | None = None

    async def begin(self, metadata: Mapping[str, str]) -> None:
        self.request_id = metadata["klein-request-id"]

    async def write(self, message: bytes) -> None:
        self._take(message)

    async def refuse(self, error: KleinError, request_id: str) -> None:
        self.error, self.request_id = error, request_id


class Image:
    """One image of an answer that is sent when all are whole. `is_settled`: from its header on it is billed."""

    def __init__(self, exchange: Exchange):
        self.transport = Kept(exchange, self._take)
        self.is_admitted = asyncio.Event()
        self.accepted, self.completed = image_pb2.Accepted(), image_pb2.Completed()
        self.is_settled = self.is_whole = False
        self.data = bytearray()

    async def until_admitted(self, call: asyncio.Task[None]) -> None:
        """Or until its call has ended without that."""
        admitted = asyncio.create_task(self.is_admitted.wait())
        await asyncio.wait((call, admitted), return_when=asyncio.FIRST_COMPLETED)
        admitted.cancel()

    def _take(self, message: bytes) -> None:
        event = image_pb2.ImageEvent.FromString(message)
        match event.WhichOneof("event"):
            case "accepted":
                self.accepted = event.accepted
                self.is_admitted.set()
            case "image_header":
                self.is_settled = True
            case "image_chunk":
                self.data += event.image_chunk.data
            case "completed":
                self.completed, self.is_whole = event.completed, True


class Stream:
    """One image as server-sent events: some previews, then the image. A transport."""

    def __init__(self, exchange: Exchange, asked: Asked):
        self._exchange, self._asked = exchange, asked
        self.peer, self.metadata, self.credentials = exchange.peer, exchange.metadata, exchange.credentials
        self.seconds_left = exchange.seconds_left
        self._type = "image_generation" if asked.operation == "Generate" else "image_edit"
        self._accepted = image_pb2.Accepted()
        self._wanted: list[int] = []  # the steps whose previews are still to be sent
        self._sent = 0
        self._is_within_image = False
        self._rest = b""  # of the image's bytes, until they are three

    async def begin(self, metadata: Mapping[str, str]) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-should-retry": "false"}
        await self._exchange.head(200, headers | answer_headers(metadata["klein-request-id"]))

    async def write(self, message: bytes) -> None:
        event = image_pb2.ImageEvent.FromString(message)
        match event.WhichOneof("event"):
            case "accepted":
                self._accepted = event.accepted
                self._wanted = steps_shown(event.accepted.steps, self._asked.fields.partial_images)
            case "queued" | "progress" as kind:
                await self._exchange.piece(f": {kind}\n\n".encode())  # a sign of life, which readers skip
            case "preview" if self._wanted and event.preview.step >= self._wanted[0]:
                await self._preview(event.preview)
            case "image_header":
                self._is_within_image = True
                kind = f"{self._type}.completed"
                head = json.dumps({"type": kind} | self._facts())[:-1]
                await self._exchange.piece(f'event: {kind}\ndata: {head}, "b64_json": "'.encode())
            case "image_chunk":
                data = self._rest + event.image_chunk.data
                cut = len(data) // 3 * 3
                self._rest = data[cut:]
                await self._exchange.piece(base64.b64encode(data[:cut]))
            case "completed":
                used = json.dumps(usage(self._accepted, [event.completed]))
                await self._exchange.piece(base64.b64encode(self._rest) + f'", "usage": {used}}}\n\n'.encode())
                self._is_within_image = False

    async def _preview(self, preview: image_pb2.Preview) -> None:
        self._wanted = [step for step in self._wanted if step > preview.step]
        kind = f"{self._type}.partial_image"
        told = {"type": kind, "partial_image_index": self._sent} | self._facts()
        told["b64_json"] = base64.b64encode(preview.data).decode()
        self._sent += 1
        await self._exchange.piece(f"event: {kind}\ndata: {json.dumps(told)}\n\n".encode())

    def _facts(self) -> dict[str, Any]:
        return {"created_at": int(time.time()), "quality": "auto"} | facts(self._asked, self._accepted)

    async def refuse(self, error: KleinError, request_id: str) -> None:
        """In the status where nothing was sent, else as an event; within an image only the cut says it."""
        if not self._exchange.is_begun:
            await send_json(
                self._exchange,
                refusals.status(error),
                refusals.body(error),
                answer_headers(request_id) | refusals.headers(error),
            )
        elif self._is_within_image:
            self._exchange.connection.abort()
        else:
            self._exchange.connection.hurry()
            told = json.dumps(refusals.body(error))
            await self._exchange.piece(f"event: error\ndata: {told}\n\n".encode(), is_last=True)


def steps_shown(steps: int, partial_images: int) -> list[int]:
    """The steps whose previews are sent: spread evenly, none twice, and not the last where there are enough."""
    return sorted({math.ceil(k * steps / (partial_images + 1)) for k in range(1, partial_images + 1)})


def facts(asked: Asked, accepted: image_pb2.Accepted) -> dict[str, Any]:
    """What is said of every image; `seed` is ours."""
    return {
        "background": asked.background,
        "output_format": asked.fields.output_format,
        "size": f"{accepted.width}x{accepted.height}",
        "seed": accepted.seed,
    }


def usage(accepted: image_pb2.Accepted, completed: list[image_pb2.Completed]) -> dict[str, Any]:
    """OpenAI's own fields, the prompt's tokens counted once, and what the images cost together."""
    tokens = accepted.prompt_tokens
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": tokens,
        "megapixels": sum(each.usage.output_megapixels for each in completed),
        "cost_microusd": sum(each.usage.cost_microusd for each in completed),
    }


def answer_headers(request_id: str) -> dict[str, str]:
    """Of every answer; the package reads `x-request-id`."""
    return {"cache-control": "no-store", "klein-request-id": request_id, "x-request-id": request_id}


async def send_json(exchange: Exchange, status: int, told: object, headers: Mapping[str, str]) -> None:
    """A small answer. A reader that stalled is not waited for."""
    exchange.connection.hurry()
    data = json.dumps(told).encode()
    await exchange.head(status, {"content-type": "application/json", "content-length": str(len(data)), **headers})
    await exchange.piece(data, is_last=True)


async def send_images(exchange: Exchange, asked: Asked, images: list[Image], patience_seconds: float) -> None:
    """All images of a request in one answer of JSON. Raises: ReaderGone, also when nothing is read for so long."""
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    await exchange.head(200, headers | answer_headers(images[0].transport.request_id))
    for piece in _pieces(asked, images):
        await exchange.piece(piece, patience_seconds=patience_seconds)
    await exchange.piece(b"", is_last=True, patience_seconds=patience_seconds)


def _pieces(asked: Asked, images: list[Image]) -> Iterator[bytes]:
    first = images[0].accepted
    told = facts(asked, first)
    del told["seed"]
    used = usage(first, [image.completed for image in images])
    yield f'{json.dumps({"created": int(time.time()), **told, "usage": used})[:-1]}, "data": ['.encode()
    for number, image in enumerate(images):
        yield f'{", " if number else ""}{{"seed": {image.accepted.seed}, "b64_json": "'.encode()
        for offset in range(0, len(image.data), _PIECE_BYTES):
            yield base64.b64encode(image.data[offset : offset + _PIECE_BYTES])
        yield b'"}'
    yield b"]}"
