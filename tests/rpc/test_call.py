"""One call from its message to its status, over a transport in memory (rpc/{account,calls}.py)."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.message import Message
from klein.v1 import image_pb2
from kleinserve.config import Config, load
from kleinserve.core import ANONYMOUS, Caller, Draft, Outcome
from kleinserve.desk.desk import Stream
from kleinserve.desk.reception import Asked
from kleinserve.errors import (
    Cancelled,
    DeadlinePassed,
    Draining,
    Internal,
    InvalidField,
    KleinError,
    NotReady,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
    ReaderStalled,
    Unauthenticated,
)
from kleinserve.identity.authenticator import Credentials, Everyone
from kleinserve.rpc.call import Call, Method, ReaderGone
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.forward import Forward
from kleinserve.rpc.servicer import Images
from structlog.testing import capture_logs

from tests.desk.stage import Stage, drafted
from tests.scheduler.scripted import FACTS

PATH = "/klein.v1.ImageService/Generate"
ASKED = image_pb2.GenerateRequest(prompt="a star")
Behaviour = Callable[[Any, Call], Awaitable[None]]


@dataclass
class Memory:
    """A transport whose reader takes what is written while `gate` is open, and then goes away if it `is_gone`."""

    left: float | None = None
    is_gone: bool = False
    peer: str = "peer"
    metadata: Mapping[str, str] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials)
    begun: list[Mapping[str, str]] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    refused: list[tuple[KleinError, str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def seconds_left(self) -> float | None:
        return self.left

    async def begin(self, metadata: Mapping[str, str]) -> None:
        self.begun.append(metadata)

    async def write(self, message: bytes) -> None:
        if self.is_gone:
            raise ReaderGone
        await self.gate.wait()
        self.written.append(message)

    async def refuse(self, error: KleinError, request_id: str) -> None:
        await self.gate.wait()
        self.refused.append((error, request_id))


class Nobody:
    """Knows no caller."""

    def caller(self, credentials: Credentials) -> Caller:
        raise Unauthenticated("no token", "none")


@dataclass
class Served:
    """Calls of one method, which does what a test says, and their books and metrics."""

    behaviour: Behaviour
    operation: str = "generate"
    authenticator: Any = field(default_factory=Everyone)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stage = Stage()
        method = Method(image_pb2.GenerateRequest, True, self.behaviour, self.operation)
        config = load({"reader_stall_seconds": 60.0} | self.settings)
        stage = self.stage
        self.calls = Calls({PATH: method}, self.authenticator, stage.desk, stage.books, config, stage.metrics)

    async def serve(self, transport: Memory, body: bytes | None = None) -> KleinError | None:
        """What the call was refused with."""
        await self.calls.serve(PATH, [ASKED.SerializeToString() if body is None else body], transport)
        assert self.calls.running == set()
        return transport.refused[0][0] if transport.refused else None

    def requests(self, code: str, reason: str) -> float:
        return self.stage.counted("klein_requests_total", operation="generate", code=code, reason=reason)


async def nothing(message: Message, call: Call) -> None:
    pass


def raising(error: BaseException) -> Behaviour:
    async def behaviour(message: Message, call: Call) -> None:
        raise error

    return behaviour


async def test_a_call_that_ends_well_has_no_refusal() -> None:
    """What it wrote has arrived, with the request's id before it; it counts as one request that was OK."""

    async def echo(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.begin()
        await call.write(message)

    served, transport = Served(echo), Memory()
    assert await served.serve(transport) is None
    assert transport.written == [ASKED.SerializeToString()]
    assert [set(metadata) for metadata in transport.begun] == [{"klein-request-id"}]
    assert served.requests("OK", "") == 1


async def test_bytes_that_are_no_message_are_an_invalid_field() -> None:
    """They are refused like everything else, before the method is asked, and counted."""
    served = Served(raising(AssertionError("asked")))
    refused = await served.serve(Memory(), b"\xff\xff")
    assert isinstance(refused, InvalidField)
    assert str(refused) == "request: 2 bytes that are no klein.v1.GenerateRequest"
    assert served.requests("INVALID_ARGUMENT", "INVALID_FIELD") == 1


@pytest.mark.parametrize("error", [NotReady(), QueueFull("full", retry_seconds=1.0), PermissionDenied("no")])
async def test_an_error_is_the_answer(error: KleinError) -> None:
    """It is told with the id that the metadata would have named; its frames, which hold the request, are let go."""
    served, transport = Served(raising(error)), Memory()
    assert await served.serve(transport) is error
    assert error.__traceback__ is None
    assert len(transport.refused[0][1]) == 32
    assert served.requests(error.status, error.reason) == 1


async def test_a_defect_says_nothing_of_our_insides() -> None:
    """The caller gets the request id; the log has the rest."""
    transport = Memory()
    refused = await Served(raising(RuntimeError("/insides"))).serve(transport)
    assert isinstance(refused, Internal)
    assert str(refused) == f"internal error, request {transport.refused[0][1]}"


async def test_who_is_not_known_is_refused_before_the_message_is_read() -> None:
    """Why is counted; a stranger learns nothing of what is wrong with the message."""
    served = Served(raising(AssertionError("asked")), authenticator=Nobody())
    assert isinstance(await served.serve(Memory(), b"\xff\xff"), Unauthenticated)
    assert served.stage.counted("klein_unauthenticated_total", why="none") == 1


async def test_a_quota_is_counted_by_caller_and_limit() -> None:
    """So that an operator sees who is at which limit."""
    served = Served(raising(QuotaExceeded("web", "requests_max", 3, 1.0)))
    await served.serve(Memory())
    assert served.stage.counted("klein_quota_refused_total", caller="web", limit="requests_max") == 1


async def test_a_refused_request_is_noted_in_the_books() -> None:
    """With the caller, the reason and the call's own id, where its message could be read."""

    async def refused(message: Message, call: Call) -> None:
        call.draft = drafted(client_tag="order 7")
        raise QueueFull("full")

    served, transport = Served(refused), Memory()
    await served.serve(transport)
    [record] = served.stage.ledger.noted
    assert (record.outcome, record.reason, record.client_tag) == (Outcome.REFUSED, "QUEUE_FULL", "order 7")
    assert (record.caller, record.request_id) == (ANONYMOUS.name, transport.refused[0][1])


async def test_other_rpcs_are_no_requests() -> None:
    """What makes no image is counted as an RPC alone."""
    served = Served(nothing, operation="")
    await served.serve(Memory())
    assert served.requests("OK", "") == 0
    rpc = {"grpc_service": "klein.v1.ImageService", "grpc_method": "Generate", "grpc_type": "server_stream"}
    assert served.stage.counted("grpc_server_handled_total", grpc_code="OK", **rpc) == 1


@pytest.mark.parametrize(
    ("left", "is_complete", "error"),
    [(None, False, Cancelled), (60.0, False, Cancelled), (0.0, False, DeadlinePassed), (None, True, type(None))],
    ids=["no deadline", "before it", "after it", "with all in hand"],
)
@pytest.mark.parametrize("how", ["reader gone", "task cancelled"])
async def test_who_goes_away_cancels_unless_the_time_is_over_or_all_was_told(
    left: float | None, is_complete: bool, error: type[KleinError], how: str
) -> None:
    """A transport ends the call at its deadline and when the reader goes; which it was the clock decides."""

    async def writing(message: Message, call: Call) -> None:
        call.is_complete = is_complete
        if how == "task cancelled":
            call.task.cancel()
            await asyncio.sleep(0)
        await call.write(message)

    serving = asyncio.ensure_future(Served(writing).serve(Memory(left, is_gone=how == "reader gone")))
    assert isinstance(await serving, error)


@pytest.mark.parametrize(("left", "margin"), [(60.0, 0.05), (0.1, 0.01), (-1.0, 0.0), (None, 0.0)])
async def test_the_answer_comes_before_the_caller_s_own_timer(left: float | None, margin: float) -> None:
    """The margin is a setting, of short deadlines a tenth."""
    clock, deadlines = asyncio.get_running_loop().time, []

    async def look(message: Message, call: Call) -> None:
        deadlines.append(call.deadline)

    before = clock()
    await Served(look, settings={"deadline_margin_seconds": 0.05}).serve(Memory(left))
    [deadline] = deadlines
    if left is None:
        assert deadline is None
    else:
        assert before <= deadline - left + margin <= clock()


@pytest.mark.parametrize(("size", "pieces"), [(0, 1), (64 * 1024 - 16, 1), (64 * 1024, 2), (1024 * 1024, 17)])
async def test_a_large_message_has_time_for_each_of_its_pieces(size: int, pieces: int) -> None:
    """Of 64 KiB each; a reader that takes nothing for so long has stalled."""

    async def writing(message: Message, call: Call) -> None:
        call.transport.gate.clear()  # type: ignore[attr-defined]
        try:
            await call.write(image_pb2.GenerateRequest(prompt="x" * size))
        finally:
            call.transport.gate.set()  # type: ignore[attr-defined]

    refused = await Served(writing, settings={"reader_stall_seconds": 0.01}).serve(Memory())
    assert isinstance(refused, ReaderStalled)
    assert str(refused).endswith(f"were not read in {0.01 * pieces:g} s")


async def test_a_status_that_nobody_takes_holds_nothing() -> None:
    """After the stall limit the handler ends; the call is no longer one of those that run."""
    served, transport = Served(raising(NotReady()), settings={"reader_stall_seconds": 0.01}), Memory()
    transport.gate.clear()
    with pytest.raises(asyncio.CancelledError):
        await served.serve(transport)
    assert served.calls.running == set()


async def test_draining_waits_and_then_interrupts_a_blocked_write() -> None:
    """Who ends within the grace is not disturbed; the rest is told why, and its task is not left cancelled."""

    async def writing(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.write(message)

    served, quick, stuck = Served(writing), Memory(), Memory()
    for transport in (quick, stuck):
        transport.gate.clear()
    serving = [asyncio.ensure_future(served.calls.serve(PATH, [b""], each)) for each in (quick, stuck)]
    await served.stage.until(lambda: len(served.calls.running) == 2)
    quick.gate.set()
    await served.calls.drain(0.05, Draining())
    stuck.gate.set()
    await asyncio.gather(*serving)
    assert quick.refused == []
    assert [type(error) for error, _ in stuck.refused] == [Draining]
    assert not any(each.cancelling() for each in serving)


async def test_each_call_is_one_line_in_the_log() -> None:
    """With the stream's facts and the trace it belongs to; the prompt only where the operator wants it."""

    async def opening(message: Message, call: Call) -> None:
        call.stream = await served.stage.desk.open(drafted(), call.asked())
        raise Cancelled("gone")

    for log_prompts in (False, True):
        served = Served(opening, settings={"log_prompts": log_prompts})
        with capture_logs() as lines:
            await served.serve(Memory(metadata={"traceparent": "00-abc-def-01"}))
        [line] = [line for line in lines if line["event"] == "request finished"]
        assert (line["method"], line["code"], line["reason"]) == ("Generate", "CANCELLED", "CANCELLED")
        assert (line["caller"], line["size"], line["steps"], line["seed"]) == ("anonymous", "64x64", 4, 7)
        assert line["traceparent"] == "00-abc-def-01"
        assert ("prompt" in line) == log_prompts
        assert served.stage.counted("klein_cancelled_total", where="queue") == 1


@pytest.mark.parametrize(("caller", "turn"), [(ANONYMOUS, "peer"), (Caller("web"), "web")])
async def test_references_are_decoded_in_turns_of_callers_or_connections(caller: Caller, turn: str) -> None:
    """Where everybody is anonymous a connection has its own turn."""
    seen: list[str] = []

    async def look(message: Message, call: Call) -> None:
        call.caller = caller
        seen.append(call.asked().turn)

    await Served(look).serve(Memory())
    assert seen == [turn]


async def test_a_stream_keeps_nothing_of_its_message() -> None:
    """Once it is open neither the message's bytes nor its references are held: they may be 40 MiB, and it may last."""
    served = Served(nothing)
    stage = served.stage
    images = Images(stage.desk, Forward(Everyone(), lambda: None, 1.0), FACTS, Config())
    served.calls.methods = {PATH: Method(image_pb2.EditRequest, True, images.generate, makes_image=True)}
    made = image_pb2.EditRequest(prompt="x", references=[image_pb2.Reference(image=b"file")])
    body, drafts = [made.SerializeToString()], []
    open_ = stage.desk.open

    async def opened(draft: Draft, asked: Asked) -> Stream:
        drafts.append(weakref.ref(draft))
        return await open_(draft, asked)

    stage.desk.open = opened  # type: ignore[method-assign]
    transport = Memory()
    transport.gate.clear()
    serving = asyncio.ensure_future(served.calls.serve(PATH, body, transport))
    await stage.until(lambda: stage.backend.submitted)
    await stage.until(lambda: transport.begun)
    assert body == []
    assert [draft() for draft in drafts] == [None]
    transport.gate.set()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_no_message_is_an_invalid_field() -> None:
    """A call that ends before it has sent its message."""
    served, transport = Served(nothing), Memory()
    await served.calls.serve(PATH, [], transport)
    [(error, _)] = transport.refused
    assert isinstance(error, InvalidField)
    assert error.violations[0].field == "request"
