"""One RPC without its transport: gRPC, gRPC-Web and whatever else carries klein.v1 drive the same calls.

`Calls.serve` is the only place that refuses, measures and logs.
"""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from google.protobuf.message import DecodeError, Message

from kleinserve.config import Config
from kleinserve.core import Caller, Draft, Operation, Options
from kleinserve.desk.books import Books, now_microseconds
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.desk import Desk, Stream
from kleinserve.desk.job import Stage
from kleinserve.desk.reception import Asked
from kleinserve.errors import (
    Cancelled,
    DeadlinePassed,
    Internal,
    InvalidField,
    KleinError,
    QuotaExceeded,
    ReaderStalled,
    Unauthenticated,
    Violation,
)
from kleinserve.identity.authenticator import Authenticator, Credentials
from kleinserve.metrics import Metrics
from kleinserve.rpc.course import course, seconds_of
from kleinserve.tracing import Traced, Tracing

_MARGIN_SHARE = 0.1  # of a short deadline: the margin is not to eat it up
FORWARDED_CALLER = "klein-forwarded-caller"  # metadata: the caller for whom a replica calls
_PIECE_BYTES = 64 * 1024  # each of them has the stall limit: a line of 2 KiB/s passes at the default

log = structlog.get_logger()


class ReaderGone(Exception):
    """The caller went away, or gRPC ended the call at its deadline."""


class Transport(Protocol):
    """What carries one RPC. `peer`: its connection. Metadata keys are lower case."""

    @property
    def peer(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def credentials(self) -> Credentials: ...
    def seconds_left(self) -> float | None:
        """Until the RPC's deadline; None: it has none."""
        ...

    async def begin(self, metadata: Mapping[str, str]) -> None:
        """Send the initial metadata."""
        ...

    async def write(self, message: bytes) -> None:
        """Send a message, or wait until there is room for it. Raises: ReaderGone."""
        ...

    async def refuse(self, error: KleinError, request_id: str) -> None:
        """End with the error's status, message and details."""
        ...


@dataclass(eq=False)
class Call:
    """One RPC. `deadline` on the event loop's clock, a margin before the caller's own. `message_bytes`: as it came.

    `passed_to`: the server that answers it, which also counts and records it; "": this one.
    """

    transport: Transport
    request_id: str
    message_bytes: int
    deadline: float | None
    stall_seconds: float
    arrived_microseconds: int
    task: "asyncio.Task[Any]"
    caller: Caller | None = None
    draft: Draft | None = None
    stream: Stream | None = None
    is_complete: bool = False  # nothing is left but for the reader to go
    cause: KleinError | None = None  # why the server itself interrupted it
    passed_to: str = ""
    bundle: Bundle = field(default_factory=Bundle)

    @property
    def known(self) -> Caller:
        assert self.caller is not None, "a call is authenticated before it is served"
        return self.caller

    @property
    def is_forwarded(self) -> bool:
        """Whether a replica has passed it on to this server."""
        return FORWARDED_CALLER in self.transport.metadata

    def asked(self) -> Asked:
        """The call as the desk sees it."""
        turn = self.known.name if self.known.name != "anonymous" else self.transport.peer
        held = self.message_bytes
        return Asked(self.request_id, self.known, turn, self.deadline, held, self.arrived_microseconds, self.bundle)

    async def begin(self) -> None:
        await self.transport.begin({"klein-request-id": self.request_id})

    async def write(self, message: Message) -> None:
        """Send one message. Raises: ReaderStalled when the reader takes nothing of it for too long; ReaderGone."""
        await self.write_bytes(message.SerializeToString())

    async def write_bytes(self, data: bytes) -> None:
        """Send one message, serialized. Raises: as `write`."""
        limit = self.stall_seconds * max(1, math.ceil(len(data) / _PIECE_BYTES))
        try:
            async with asyncio.timeout(limit):
                await self.transport.write(data)
        except TimeoutError:
            raise ReaderStalled(f"{len(data)} bytes were not read in {limit:g} s") from None

    def interrupt(self, error: KleinError) -> None:
        """End it with `error`, also while a write is blocked."""
        self.cause = error
        self.task.cancel()


@dataclass(frozen=True)
class Method:
    """An RPC of the contract. `behaviour` writes its answers to the call; an image RPC's are counted as requests."""

    request: type[Message]
    is_stream: bool
    behaviour: Callable[[Any, Call], Awaitable[None]]
    operation: str = ""  # generate or edit: of requests that are refused before there is a job
    makes_image: bool = False


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
        error = await self._outcome(method, read, call)
        stage = self.desk.leave(call.stream) if call.stream else None
        seconds, code = asyncio.get_running_loop().time() - started, error.status if error else "OK"
        self.metrics.rpc_handled(kind, path, code, seconds)
        self._count(method, call, error, stage, seconds)
        self._log(path, call, error, seconds)
        if method.makes_image:
            self._show_course(path, call, code, started, seconds)
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

    def _count(self, method: Method, call: Call, error: KleinError | None, stage: Stage | None, seconds: float) -> None:
        metrics = self.metrics
        if call.passed_to:
            return
        if isinstance(error, Unauthenticated):
            metrics.unauthenticated.labels(error.why).inc()
        if isinstance(error, QuotaExceeded):
            metrics.quota_refused.labels(error.caller, error.limit).inc()
        if (stream := call.stream) is not None:
            operation = stream.job.request.operation.value
            metrics.previews.labels("skipped").inc(stream.reader.previews_skipped)
            metrics.previews.labels("sent").inc(stream.reader.previews_sent)
            if stream.reader.first_preview is not None:
                first = stream.reader.first_preview - stream.job.submitted
                metrics.time_to_first_preview_seconds.labels(operation).observe(first)
            if isinstance(error, Cancelled) and stage in (Stage.WAITING, Stage.RUNNING, Stage.DELIVERING):
                metrics.cancelled.labels(stage.value).inc()
        else:
            operation = call.draft.operation.value if call.draft is not None else method.operation
            if isinstance(error, Cancelled):
                metrics.cancelled.labels(Stage.WAITING.value).inc()
            if operation and error is not None and call.caller is not None:
                asked = call.draft or Draft(Operation(operation), "", (), None, Options(0, 0, 1.0), is_seed_drawn=True)
                self.books.refuse(call.request_id, call.caller.name, asked, error, call.arrived_microseconds)
        if operation:
            code, reason = (error.status, error.reason) if error else ("OK", "")
            metrics.finished(operation, code, reason, seconds, has_deadline=call.deadline is not None)

    def _log(self, path: str, call: Call, error: KleinError | None, seconds: float) -> None:
        facts: dict[str, object] = {**_shown(call)}
        if (stream := call.stream) is not None:
            request, spent = stream.job.request, stream.job.spent
            facts |= {
                "seed": request.options.seed,
                "queue_seconds": round(stream.job.queue_seconds, 4),
                "max_step_requests": spent.max_step_requests,
                "previews_skipped": stream.reader.previews_skipped,
            }
            if stream.job.request.request_id != call.request_id:
                facts["job"] = stream.job.request.request_id
            if self.config.log_prompts:
                facts["prompt"] = request.prompt
        if call.passed_to:
            facts["passed_to"] = call.passed_to
        if (parent := call.transport.metadata.get("traceparent")) is not None:
            facts["traceparent"] = parent
        code, reason = (error.status, error.reason) if error else ("OK", "")
        method = path.rsplit("/", 1)[1]
        log.info(
            "request finished",
            method=method,
            code=code,
            reason=reason,
            seconds=round(seconds, 4),
            **facts,
        )

    def _show_course(self, path: str, call: Call, code: str, started: float, seconds: float) -> None:
        """Say where its time went, in its trace, and in the log if it took long; once it is known what ran for it."""
        is_slow = 0 < self.config.slow_request_seconds <= seconds
        if self.tracing is None and not is_slow:
            return
        job = call.stream.job if call.stream is not None else None
        facts, began, given = _shown(call), call.arrived_microseconds * 1000, call.transport.metadata
        headers = {name: given[name] for name in ("traceparent", "tracestate") if name in given}

        def show() -> None:
            stages = course(started, started + seconds, job)
            if is_slow:
                log.warning("slow request", code=code, seconds=round(seconds, 4), where=seconds_of(stages), **facts)
            if self.tracing is not None:
                self.tracing.record(Traced(path.lstrip("/"), began, seconds, headers, code, facts, stages))

        show() if job is None else job.when_spent(show)

    async def drain(self, grace_seconds: float, error: KleinError) -> None:
        """Let running calls end for `grace_seconds`, then end the rest with `error`."""
        tasks = {call.task for call in self.running}
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for call in list(self.running):
            call.interrupt(error)


def _shown(call: Call) -> dict[str, str | int]:
    """What a trace and the log say of a request: whose it is and how large."""
    facts: dict[str, str | int] = {"request_id": call.request_id, "caller": call.caller.name if call.caller else ""}
    if call.stream is None:
        return facts
    request = call.stream.job.request
    return facts | {
        "operation": request.operation.value,
        "size": str(request.size),
        "steps": request.options.steps,
        "references": len(request.references),
        "priority": request.options.priority.value,
    }


def _parsed(method: Method, body: list[bytes]) -> Message:
    if not body:
        raise InvalidField(Violation("request", f"no message; one {method.request.DESCRIPTOR.full_name} is required"))
    data = body.pop()
    try:
        return method.request.FromString(data)
    except DecodeError:
        said = f"{len(data)} bytes that are no {method.request.DESCRIPTOR.full_name}"
        raise InvalidField(Violation("request", said)) from None
