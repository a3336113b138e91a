"""`/v1/images/generations`, `/v1/images/edits`, `/v1/models`: each image is a call of its own, all are one bundle."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

from google.protobuf.message import Message
from klein.v1 import image_pb2
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route

from kleinserve.desk.bundle import Bundle
from kleinserve.errors import KleinError
from kleinserve.rpc.call import ReaderGone
from kleinserve.rpc.calls import Calls
from kleinserve.web.http import BodyTooLarge, Exchange, Served
from kleinserve.web.openai import fields, refusals
from kleinserve.web.openai.answers import Image, Kept, Stream, answer_headers, send_images, send_json
from kleinserve.web.openai.fields import Asked, ModelNotFound

_SERVICE = "/klein.v1.ImageService/"
_SEEDS = 2**64
Parse = Callable[[bytes, Headers, str], Awaitable[Asked]]


def routes(calls: Calls, model: str) -> list[BaseRoute]:
    """What this API has, and its own 404 for the rest of it."""
    images, models = Images(calls, model), Models(calls, model)
    return [
        Route("/v1/images/generations", Served(partial(images.serve, "Generate", fields.generation)), methods=["POST"]),
        Route("/v1/images/edits", Served(partial(images.serve, "Edit", fields.edit)), methods=["POST"]),
        Route("/v1/models", Served(models.list), methods=["GET"]),
        Route("/v1/models/{model:path}", Served(models.retrieve), methods=["GET"]),
        Route("/v1/{rest:path}", Served(_nothing), methods=["GET", "POST", "DELETE"]),
    ]


class Images:
    """Generations and edits."""

    def __init__(self, calls: Calls, model: str):
        self._calls, self._model = calls, model

    async def serve(self, operation: str, parse: Parse, exchange: Exchange) -> None:
        config = self._calls.config
        try:
            self._calls.caller(Kept(exchange, lambda _: None))  # before anything is held
            body = [bytes(await exchange.body(config.request_bytes_max, config.reader_stall_seconds))]
        except KleinError as error:
            await exchange.while_read(self._refuse(operation, exchange, error, 0))
        except BodyTooLarge:
            told = refusals.plain(f"over {config.request_bytes_max} bytes", "REQUEST_TOO_LARGE")
            await send_json(exchange, 413, told, {"x-should-retry": "false", "connection": "close"})
        except ReaderGone:
            exchange.connection.abort()
        else:
            await exchange.while_read(self._answer(operation, parse, exchange, body))

    async def _answer(self, operation: str, parse: Parse, exchange: Exchange, body: list[bytes]) -> None:
        """The body is taken out of `body`: nothing holds it while the images are drawn."""
        message_bytes = len(body[0])
        try:
            asked = await parse(body.pop(), Headers(scope=exchange.scope), self._model)
        except KleinError as error:
            await self._refuse(operation, exchange, error, message_bytes)
            return
        if asked.fields.stream:
            stream, read = Stream(exchange, asked), partial(asked.message, 0, asked.fields.seed)
            await self._calls.serve_message(_SERVICE + operation, read, message_bytes, stream)
            await exchange.end()
        else:
            images, failed = await self._draw(asked, message_bytes, exchange)
            await self._send(exchange, asked, images, failed)

    async def _refuse(self, operation: str, exchange: Exchange, error: KleinError, message_bytes: int) -> None:
        """What was refused before it was a call, told, counted and logged as one."""
        kept = Kept(exchange, lambda _: None)
        await self._calls.serve_message(_SERVICE + operation, partial(_raise, error), message_bytes, kept)
        await refuse(exchange, kept)

    async def _draw(self, asked: Asked, message_bytes: int, exchange: Exchange) -> tuple[list[Image], Image | None]:
        """Serve a call for each image, until all have ended or one has failed; returns that one too.

        Each begins when the one before is admitted: the first says the seed, what is refused is refused once, and the
        references as they were sent are held for one at a time.
        """
        images, bundle = [Image(exchange) for _ in range(asked.fields.n)], Bundle(asked.fields.n)
        share, seed, calls = -(-message_bytes // len(images)), asked.fields.seed, set[asyncio.Task[None]]()
        try:
            for index, image in enumerate(images):
                read = partial(asked.message, index, seed)
                path = _SERVICE + asked.operation
                call = asyncio.create_task(self._calls.serve_message(path, read, share, image.transport, bundle))
                calls.add(call)
                await image.until_admitted(call)
                if _failed(images) is not None:
                    break
                seed = (image.accepted.seed + 1) % _SEEDS
            pending = calls
            while pending and _failed(images) is None:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            return images, _failed(images)
        finally:  # the others end too, and so do all when the reader has gone
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    async def _send(self, exchange: Exchange, asked: Asked, images: list[Image], failed: Image | None) -> None:
        """All images, or the error of the one that failed.

        Then none is billed but what was before, by its key, or by another server that had its key.
        """
        if failed is None:
            assert all(image.is_whole for image in images), "no OK without an image"
            await send_images(exchange, asked, images, self._calls.config.reader_stall_seconds)
            return
        billed = sum(image.is_settled for image in images)
        note = f"; {billed} of {len(images)} images were billed before that: {asked.again}" if billed else ""
        is_admitted = any(image.is_admitted.is_set() for image in images)
        await refuse(exchange, failed.transport, note, is_admitted=is_admitted, is_keyed=asked.is_keyed)


class Models:
    """The one that is served. Its name comes with the capabilities, so that who may not call is refused as ever."""

    def __init__(self, calls: Calls, model: str):
        self._calls, self._model = calls, model

    async def list(self, exchange: Exchange) -> None:
        await exchange.while_read(self._answer(exchange, self._model, is_list=True))

    async def retrieve(self, exchange: Exchange) -> None:
        await exchange.while_read(self._answer(exchange, exchange.scope["path_params"]["model"], is_list=False))

    async def _answer(self, exchange: Exchange, model: str, *, is_list: bool) -> None:
        def read() -> Message:
            if model != self._model:
                raise ModelNotFound(model, self._model)
            return image_pb2.GetCapabilitiesRequest()

        kept = Kept(exchange, lambda _: None)
        await self._calls.serve_message(_SERVICE + "GetCapabilities", read, 0, kept)
        if kept.error is not None:
            await refuse(exchange, kept)
            return
        told = {"id": self._model, "object": "model", "created": 0, "owned_by": "klein-serve"}
        whole = {"object": "list", "data": [told]} if is_list else told
        await send_json(exchange, 200, whole, {"x-should-retry": "false"})


async def refuse(exchange: Exchange, kept: Kept, note: str = "", **settled: Any) -> None:
    """Answer with the error of a call."""
    assert kept.error is not None
    headers = answer_headers(kept.request_id) | refusals.headers(kept.error, **settled)
    await send_json(exchange, refusals.status(kept.error), refusals.body(kept.error, note), headers)


async def _nothing(exchange: Exchange) -> None:
    """What else OpenAI has."""
    told = refusals.plain(f"{exchange.scope['method']} {exchange.scope['path']} is not served here", "NOT_FOUND")
    await send_json(exchange, 404, told, {"x-should-retry": "false"})


def _failed(images: list[Image]) -> Image | None:
    return next((image for image in images if image.transport.error is not None), None)


def _raise(error: KleinError) -> NoReturn:
    raise error
