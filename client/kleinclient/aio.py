"""The asynchronous client: one channel, for the event loop that it is first used in."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from weakref import WeakSet

import grpc
from klein.v1 import image_pb2, image_pb2_grpc, usage_pb2, usage_pb2_grpc

from kleinclient import answer, request
from kleinclient.capabilities import Capabilities, capabilities
from kleinclient.connection import UNARY_SECONDS, Connection, Settings
from kleinclient.errors import Cancelled
from kleinclient.exchange import Exchange
from kleinclient.request import Ask, Options, Reference
from kleinclient.retry import Attempts
from kleinclient.stream import AsyncImageStream, is_being_cancelled
from kleinclient.usage import UsageRecord, UsageTotal, ask_records, ask_totals, record, totals

Answer = TypeVar("Answer")


class AsyncClient:
    """A connection to a klein server, for one event loop: the one that runs when it is first used.

        async with AsyncClient("localhost:50051") as klein:
            image = await klein.generate("a red circle", seed=7)

    Everything is as with Client; streams are read with `async for`, everything else is awaited. It may be made before
    the loop runs. The token's callable may be asynchronous.
    """

    def __init__(self, target: str | None = None, **settings: Unpack[Settings]):
        self._connection = Connection(target, settings)
        self._services: _Services | None = None
        self._streams: WeakSet[AsyncImageStream] = WeakSet()
        self._closing = asyncio.Event()

    def generate(self, prompt: str, **options: Unpack[Options]) -> AsyncImageStream:
        """Make an image of `prompt`. Raises: ValueError for an option that does not fit the wire."""
        return self._stream(request.generate(prompt, options))

    def edit(self, prompt: str, references: Sequence[Reference], **options: Unpack[Options]) -> AsyncImageStream:
        """Make an image of `prompt` and 1 to 4 references; the n-th is "image n" of the prompt.

        Files are read at once, in the event loop. Raises: as `generate`; OSError for a file that cannot be read.
        """
        return self._stream(request.edit(prompt, references, options))

    def attach(self, idempotency_key: str, *, timeout: float | None = None) -> AsyncImageStream:
        """The stream of a running or kept request, from its present state on. Raises: ValueError."""
        return self._stream(request.attach(idempotency_key, timeout))

    async def cancel(self, idempotency_key: str) -> None:
        """End the request with this key, whoever reads it, and forget its image. Raises: ValueError."""
        key = request.checked_key(idempotency_key)
        await self._answer(lambda here: here.images.Cancel, image_pb2.CancelRequest(idempotency_key=key), key)

    async def capabilities(self) -> Capabilities:
        """What the server's model can do, and the limits of a request."""
        asked = image_pb2.GetCapabilitiesRequest()
        return capabilities(await self._answer(lambda here: here.images.GetCapabilities, asked))

    async def usage(self, start: datetime, end: datetime, *, caller: str = "") -> tuple[UsageTotal, ...]:
        """Totals of the requests that ended in [start, end), by caller and operation."""
        asked = ask_totals(start, end, caller)
        return totals((await self._answer(lambda here: here.usage.GetUsage, asked)).totals)

    def usage_records(
        self, start: datetime, end: datetime, *, caller: str = "", after_record_id: str = ""
    ) -> AsyncIterator[UsageRecord]:
        """One record per request that ended in [start, end), oldest first, as they come; resumable after any record."""
        return self._records(ask_records(start, end, caller, after_record_id))

    async def close(self) -> None:
        """Cancel what is under way and disconnect; who waits for it gets Cancelled."""
        self._closing.set()
        for stream in list(self._streams):
            stream.close()
        if self._services is not None:
            await self._services.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _stream(self, ask: Ask) -> AsyncImageStream:
        stream = AsyncImageStream(self._open, Exchange(ask, self._connection))
        self._streams.add(stream)
        return stream

    async def _open(self, exchange: Exchange) -> Any:
        ask = exchange.ask
        headers = await self._connection.headers_async(ask.key)
        rpc = getattr(self._here().images, ask.rpc)
        return rpc(ask.message, timeout=exchange.seconds_left(), metadata=headers)

    async def _answer(
        self, rpc: Callable[["_Services"], Callable[..., Awaitable[Answer]]], message: object, key: str = ""
    ) -> Answer:
        """The answer to one question; all but Cancel, which has a key, may be asked twice."""
        attempts = self._attempts(UNARY_SECONDS, repeatable=not key)
        ask = rpc(self._here())
        while True:
            try:
                headers = await self._connection.headers_async(key)
                answered = await ask(message, timeout=attempts.seconds_left(), metadata=headers)
                attempts.progressed()
                return answered
            except (grpc.RpcError, asyncio.CancelledError) as failure:
                await self._pause(attempts, failure)

    async def _records(self, asked: usage_pb2.ListUsageRecordsRequest) -> AsyncIterator[UsageRecord]:
        attempts = self._attempts(None, repeatable=True)
        while True:
            call = self._here().usage.ListUsageRecords(asked, metadata=await self._connection.headers_async())
            try:
                async for message in call:
                    attempts.progressed()
                    asked.after_record_id = message.record.record_id
                    yield record(message.record)
                return
            except (grpc.RpcError, asyncio.CancelledError) as failure:
                await self._pause(attempts, failure)
            finally:
                call.cancel()

    def _attempts(self, timeout: float | None, *, repeatable: bool) -> Attempts:
        return Attempts(self._connection.retry, self._connection.contact, timeout=timeout, repeatable=repeatable)

    async def _pause(self, attempts: Attempts, failure: grpc.RpcError | asyncio.CancelledError) -> None:
        """Wait until it may be asked again. Raises: KleinError, if it may not; a cancelled task's CancelledError."""
        if isinstance(failure, asyncio.CancelledError) and (is_being_cancelled() or not self._closing.is_set()):
            raise failure
        if isinstance(failure, grpc.RpcError) and not self._closing.is_set():
            retrying = attempts.failed(answer.error(failure, self._connection.target))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), retrying.delay)
        if self._closing.is_set():
            raise Cancelled("the client was closed", status="CANCELLED") from None

    def _here(self) -> "_Services":
        """The channel of this event loop. Raises: RuntimeError in any other loop than the first."""
        if self._services is None:
            self._services = _Services(self._connection)
        if self._services.loop is not asyncio.get_running_loop():
            raise RuntimeError("this AsyncClient belongs to another event loop; make one for each loop")
        return self._services


class _Services:
    """The channel and its stubs, bound to the event loop that runs now."""

    def __init__(self, connection: Connection):
        self.loop = asyncio.get_running_loop()
        self.channel = (
            grpc.aio.insecure_channel(connection.target, connection.options)
            if connection.credentials is None
            else grpc.aio.secure_channel(connection.target, connection.credentials, connection.options)
        )
        self.images = image_pb2_grpc.ImageServiceStub(self.channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self.channel)
