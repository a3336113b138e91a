"""The blocking client: one channel, safe to share between threads."""

import threading
from collections.abc import Callable, Iterator, Sequence
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
from kleinclient.stream import ImageStream
from kleinclient.usage import UsageRecord, UsageTotal, ask_records, ask_totals, record, totals

Answer = TypeVar("Answer")


class Client:
    """A connection to a klein server.

        with Client("localhost:50051") as klein:
            klein.generate("a red circle", seed=7).result().save("circle.png")

    `target`: HOST, HOST:PORT, dns:///HOST and more (target.py); default: KLEIN_SERVER, or this machine.
    `settings`: token, TLS, metadata, retry and channel options (Settings). Nothing connects before the first call.
    All calls raise KleinError. Raises: ValueError for settings that cannot work, OSError for an unreadable file.
    """

    def __init__(self, target: str | None = None, **settings: Unpack[Settings]):
        self._connection = Connection(target, settings)
        self._channel = _channel(self._connection)
        self._images = image_pb2_grpc.ImageServiceStub(self._channel)
        self._usage = usage_pb2_grpc.UsageServiceStub(self._channel)
        self._streams: WeakSet[ImageStream] = WeakSet()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    def generate(self, prompt: str, **options: Unpack[Options]) -> ImageStream:
        """Make an image of `prompt`. Raises: ValueError for an option that does not fit the wire."""
        return self._stream(request.generate(prompt, options))

    def edit(self, prompt: str, references: Sequence[Reference], **options: Unpack[Options]) -> ImageStream:
        """Make an image of `prompt` and 1 to 4 references; the n-th is "image n" of the prompt.

        Raises: as `generate`; OSError for a file that cannot be read.
        """
        return self._stream(request.edit(prompt, references, options))

    def attach(self, idempotency_key: str, *, timeout: float | None = None) -> ImageStream:
        """The stream of a running or kept request, from its present state on. Raises: ValueError."""
        return self._stream(request.attach(idempotency_key, timeout))

    def cancel(self, idempotency_key: str) -> None:
        """End the request with this key, whoever reads it, and forget its image. Raises: ValueError."""
        key = request.checked_key(idempotency_key)
        self._answer(self._images.Cancel, image_pb2.CancelRequest(idempotency_key=key), key)

    def capabilities(self) -> Capabilities:
        """What the server's model can do, and the limits of a request."""
        return capabilities(self._answer(self._images.GetCapabilities, image_pb2.GetCapabilitiesRequest()))

    def usage(self, start: datetime, end: datetime, *, caller: str = "") -> tuple[UsageTotal, ...]:
        """Totals of the requests that ended in [start, end), by caller and operation."""
        return totals(self._answer(self._usage.GetUsage, ask_totals(start, end, caller)).totals)

    def usage_records(
        self, start: datetime, end: datetime, *, caller: str = "", after_record_id: str = ""
    ) -> Iterator[UsageRecord]:
        """One record per request that ended in [start, end), oldest first, as they come; resumable after any record."""
        return self._records(ask_records(start, end, caller, after_record_id))

    def close(self) -> None:
        """Cancel what is under way and disconnect; who waits for it gets Cancelled."""
        self._end_streams()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_streams()
        # Interrupted in the middle of beginning a call, gRPC waits for that call for ever; the process ends anyway.
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            self._channel.close()

    def _end_streams(self) -> None:
        self._is_closed.set()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    def _stream(self, ask: Ask) -> ImageStream:
        stream = ImageStream(self._open, Exchange(ask, self._connection))
        with self._lock:
            self._streams.add(stream)
        return stream

    def _open(self, exchange: Exchange) -> Any:
        ask = exchange.ask
        headers = self._connection.headers(ask.key)
        return getattr(self._images, ask.rpc)(ask.message, timeout=exchange.seconds_left(), metadata=headers)

    def _answer(self, rpc: Callable[..., Answer], message: object, key: str = "") -> Answer:
        """The answer to one question; all but Cancel, which has a key, may be asked twice."""
        attempts = self._attempts(UNARY_SECONDS, repeatable=not key)
        while True:
            try:
                answered = rpc(message, timeout=attempts.seconds_left(), metadata=self._connection.headers(key))
                attempts.progressed()
                return answered
            except grpc.RpcError as failure:
                self._pause(attempts, failure)

    def _records(self, asked: usage_pb2.ListUsageRecordsRequest) -> Iterator[UsageRecord]:
        attempts = self._attempts(None, repeatable=True)
        while True:
            call = self._usage.ListUsageRecords(asked, metadata=self._connection.headers())
            try:
                for message in call:
                    attempts.progressed()
                    asked.after_record_id = message.record.record_id
                    yield record(message.record)
                return
            except grpc.RpcError as failure:
                self._pause(attempts, failure)
            finally:
                call.cancel()

    def _attempts(self, timeout: float | None, *, repeatable: bool) -> Attempts:
        return Attempts(self._connection.retry, self._connection.contact, timeout=timeout, repeatable=repeatable)

    def _pause(self, attempts: Attempts, failure: grpc.RpcError) -> None:
        """Wait until it may be asked again. Raises: KleinError, if it may not."""
        if not self._is_closed.is_set():
            retrying = attempts.failed(answer.error(failure, self._connection.target))
            self._is_closed.wait(retrying.delay)
        if self._is_closed.is_set():
            raise Cancelled("the client was closed", status="CANCELLED") from None


def _channel(connection: Connection) -> grpc.Channel:
    if connection.credentials is None:
        return grpc.insecure_channel(connection.target, connection.options)
    return grpc.secure_channel(connection.target, connection.credentials, connection.options)
