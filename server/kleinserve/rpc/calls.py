"""Every RPC from its message to its status: the only place that refuses a call."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import DecodeError, Message

from kleinserve.config import Config
from kleinserve.core import Caller
from kleinserve.desk.books import Books, now_microseconds
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.desk import Desk
from kleinserve.errors import (
    Cancelled,
    DeadlinePassed,
    Internal,
    InvalidField,
    KleinError,
    Violation,
)
from kleinserve.identity.authenticator import Authenticator
from kleinserve.metrics import Metrics
from kleinserve.rpc.account import Account
from kleinserve.rpc.call import FORWARDED_CALLER, Call, Method, ReaderGone, Transport
from kleinserve.tracing import Tracing

_MARGIN_SHARE = 0.1  # of a short deadline: the margin is not to eat it up

log = structlog.get_logger()


@dataclass
class Calls:
    """All RPCs, by their paths (`/klein.v1.ImageService/Generate`)."""

    methods: Mapping[str, Method]
    authenticator: Authenticator
    desk: Desk
    books: Books
    config: Config
    metrics: Metrics
    tracing: Tracing | None = None
    running: set[Call] = field(default_factory=set)
    begun: int = 0  # calls so far

    def __post_init__(self) -> None:
        self._account = Account(self.books, self.config, self.metrics, self.tracing)

    async def serve(self, path: str, body: list[bytes], transport: Transport) -> None:
        """One RPC from its one message to its status, whatever happens.

        The message is taken out of `body`: a stream that lives for long keeps none of its 40 MiB.
        """
        await self.serve_message(path, lambda: _parsed(self.methods[path], body), sum(map(len, body)), transport)

    async def serve_message(
        self,
        path: str,
        read: Callable[[], Message],
        message_bytes: int,
        transport: Transport,
        bundle: Bundle | None = None,
    ) -> None:
        """The same for a message that `read` makes of so many bytes; a KleinError that it raises refuses the call.

        `bundle`: of several images; the bytes are then this one's share.
        """
        method, started = self.methods[path], asyncio.get_running_loop().time()
        call = self._call(message_bytes, transport, bundle or Bundle())
        kind = "server_stream" if method.is_stream else "unary"
        self.metrics.rpc_started(kind, path)
        self.running.add(call)
        self.begun += 1
        error = await self._outcome(method, read, call)
        stage = self.desk.leave(call.stream) if call.stream else None
        seconds, code = asyncio.get_running_loop().time() - started, error.status if error else "OK"
        self.metrics.rpc_handled(kind, path, code, seconds)
        self._account.count(method, call, error, stage, seconds)
        self._account.log(path, call, error, seconds)
        if method.makes_image:
            self._account.show_course(path, call, code, started, seconds)
        try:
            if error is not None:
                error.__traceback__ = None  # its frames hold the references until the reader has taken the status
                await self._refuse(call, error)
        finally:
            self.running.discard(call)

    def _call(self, message_bytes: int, transport: Transport, bundle: Bundle) -> Call:
        left = transport.seconds_left()
        deadline = None
        if left is not None:
            margin = min(self.config.deadline_margin_seconds, _MARGIN_SHARE * max(0.0, left))
            deadline = asyncio.get_running_loop().time() + left - margin
        task = asyncio.current_task()
        assert task is not None
        stall = self.config.reader_stall_seconds
        arrived = now_microseconds()
        return Call(transport, uuid.uuid4().hex, message_bytes, deadline, stall, arrived, task, bundle=bundle)

    async def _outcome(self, method: Method, read: Callable[[], Message], call: Call) -> KleinError | None:
        """How the call ended: None is OK."""
        try:
            call.caller = self.caller(call.transport)
            await method.behaviour(read(), call)
        except KleinError as refused:
            return refused
        except (asyncio.CancelledError, ReaderGone):
            if call.cause is not None:
                call.task.uncancel()
                return call.cause
            if call.is_complete:
                return None
            is_late = call.deadline is not None and asyncio.get_running_loop().time() >= call.deadline
            return DeadlinePassed("the deadline passed") if is_late else Cancelled("the caller went away")
        except Exception:
            log.exception("call failed", request_id=call.request_id)
            return Internal(f"internal error, request {call.request_id}")
        return None

    def caller(self, transport: Transport) -> Caller:
        """Who calls, or for whom a replica does. Raises: Unauthenticated, PermissionDenied."""
        name = transport.metadata.get(FORWARDED_CALLER)
        if name is None:
            return self.authenticator.caller(transport.credentials)
        return self.authenticator.on_behalf(transport.credentials, name)

    async def _refuse(self, call: Call, error: KleinError) -> None:
        """End with `error`. For a reader that does not take it gRPC keeps it; the request's memory goes."""
        try:
            async with asyncio.timeout(self.config.reader_stall_seconds):
                await call.transport.refuse(error, call.request_id)
        except TimeoutError:
            raise asyncio.CancelledError from None  # ends the handler; the status is under way

    async def drain(self, grace_seconds: float, error: KleinError) -> None:
        """Let running calls end for `grace_seconds`, then end the rest with `error`."""
        tasks = {call.task for call in self.running}
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for call in list(self.running):
            call.interrupt(error)


def _parsed(method: Method, body: list[bytes]) -> Message:
    if not body:
        raise InvalidField(Violation("request", f"no message; one {method.request.DESCRIPTOR.full_name} is required"))
    data = body.pop()
    try:
        return method.request.FromString(data)
    except DecodeError:
        said = f"{len(data)} bytes that are no {method.request.DESCRIPTOR.full_name}"
        raise InvalidField(Violation("request", said)) from None
