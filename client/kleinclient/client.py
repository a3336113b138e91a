"""The blocking client: one channel, safe to share between threads."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from klein.v1 import image_pb2, image_pb2_grpc, usage_pb2, usage_pb2_grpc

from kleinclient import answer, request
from kleinclient.capabilities import Capabilities, capabilities
from kleinclient.channel import DEFAULT_TARGET, OPTIONS, UNARY_SECONDS
from kleinclient.exchange import Exchange
from kleinclient.request import Ask, Options, Reference
from kleinclient.retry import Attempts, Retry
from kleinclient.stream import ImageStream
from kleinclient.usage import UsageRecord, UsageTotal, ask_records, ask_totals, record, totals

Answer = TypeVar("Answer")


class Client:
    """A connection to a klein server.

        with Client("localhost:50051") as klein:
            klein.generate("a red circle", seed=7).result().save("circle.png")

    `credentials`: for TLS; without them the connection is plain text. `metadata`: sent with every call.
    Nothing connects before the first call. All calls raise KleinError.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        retry: Retry | None = None,
    ):
        self._target = target
        self._metadata = tuple(metadata)
        self._retry = retry or Retry()
        self._channel = (
            grpc.secure_channel(target, credentials, OPTIONS) if credentials else grpc.insecure_channel(target, OPTIONS)
        )
        self._images = image_pb2_grpc.ImageServiceStub(self._channel)
        self._usage = usage_pb2_grpc.UsageServiceStub(self._channel)

    def generate(self, prompt: str, **options: Unpack[Options]) -> ImageStream:
        """Make an image of `prompt`. Raises: ValueError for an option that does not fit the wire."""
        return self._stream(request.generate(prompt, options))

    def edit(self, prompt: str, references: Sequence[Reference], **options: Unpack[Options]) -> ImageStream:
        """Make an image of `prompt` and 1 to 4 references; the n-th is "image n" of the prompt.

        Raises: as `generate`; OSError for a file that cannot be read.
        """
        return self._stream(request.edit(prompt, references, options))

    def attach(self, idempotency_key: str, *, timeout: float | None = None) -> ImageStream:
        """The stream of a running or kept request, from its present state on."""
        return self._stream(request.attach(idempotency_key, timeout))

    def cancel(self, idempotency_key: str) -> None:
        """End the request with this key, whoever reads it."""
        self._answer(self._images.Cancel, image_pb2.CancelRequest(idempotency_key=idempotency_key))

    def capabilities(self) -> Capabilities:
        """What the server's model can do, and the limits of a request."""
        return capabilities(self._answer(self._images.GetCapabilities, image_pb2.GetCapabilitiesRequest()))

    def usage(self, start: datetime, end: datetime, *, caller: str = "") -> tuple[UsageTotal, ...]:
        """Totals of the requests that ended in [start, end), by caller and operation."""
        return totals(self._answer(self._usage.GetUsage, ask_totals(start, end, caller)).totals)

    def usage_records(
        self, start: datetime, end: datetime, *, caller: str = "", after_record_id: str = ""
    ) -> Iterator[UsageRecord]:
        """One record per request that ended in [start, end), oldest first; resumable after any record."""
        return self._records(ask_records(start, end, caller, after_record_id))

    def close(self) -> None:
        """Cancel what is under way and disconnect."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, ask: Ask) -> ImageStream:
        rpc = getattr(self._images, ask.rpc)
        return ImageStream(
            lambda seconds: rpc(ask.message, timeout=seconds, metadata=self._metadata),
            Exchange(ask, self._retry, self._target),
        )

    def _answer(self, rpc: Callable[..., Answer], message: object) -> Answer:
        """The answer to one question, asked again where the server says when."""
        attempts = Attempts(self._retry, timeout=UNARY_SECONDS, has_key=False)
        while True:
            try:
                return rpc(message, timeout=attempts.seconds_left(), metadata=self._metadata)
            except grpc.RpcError as failure:
                retrying = attempts.failed(answer.error(failure, self._target))
            time.sleep(retrying.delay)

    def _records(self, asked: usage_pb2.ListUsageRecordsRequest) -> Iterator[UsageRecord]:
        call = self._usage.ListUsageRecords(asked, metadata=self._metadata)
        try:
            for message in call:
                yield record(message.record)
        except grpc.RpcError as failure:
            raise answer.error(failure, self._target) from None
        finally:
            call.cancel()
