"""A broken stream is taken up again by its key: one picture, whatever breaks in between (exchange.py).

Also what reader.py tells twice.
"""

import threading
from typing import Any

import grpc
import pytest
from kleinclient import (
    Accepted,
    BrokenStream,
    ConnectionLost,
    IdempotencyKeyReused,
    KleinError,
    Preview,
    Progress,
    ResultGone,
)
from kleinclient.connection import OPTIONS

from tests.client.conftest import PICTURE, Scripted, ending, event, opening, refuse, serving, whole
from tests.client.relay import Relay

Code = grpc.StatusCode


def dying(code: grpc.StatusCode, words: str) -> Any:
    """Ends in the middle of the image without a klein server's words, as gRPC and proxies end streams."""

    def script(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        yield from list(ending())[:2]
        context.abort(code, words)

    return script


def draining(request: Any, context: grpc.ServicerContext) -> Any:
    yield from opening()
    refuse(context, Code.UNAVAILABLE, "DRAINING", retry_seconds=0.01)


def truncated(request: Any, context: grpc.ServicerContext) -> Any:
    yield from opening()
    yield from list(ending())[:-1]


def altered(request: Any, context: grpc.ServicerContext) -> Any:
    yield from opening()
    yield from ending(sha256=bytes(32))


def skipping(request: Any, context: grpc.ServicerContext) -> Any:
    header, _, *rest = ending()
    yield from [*opening(), header, *rest]


BROKEN = {
    "socket": dying(Code.UNAVAILABLE, "Socket closed"),
    "go away": dying(Code.UNAVAILABLE, "GOAWAY received; Error code: 0; Debug Text: max_age"),
    "proxy cancels": dying(Code.CANCELLED, "Received RST_STREAM with error code 8"),
    "internal": dying(Code.INTERNAL, "Received RST_STREAM with error code 2"),
    "unknown": dying(Code.UNKNOWN, "Stream removed"),
    "draining": draining,
    "truncated": truncated,
    "altered": altered,
    "skipping": skipping,
}


@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
def test_one_image(server: Any, caller: Any, script: Any) -> None:
    """The same request goes out again under the same key; every step is told once, and there is one image."""
    server.play(script, script, whole)
    events = caller.events(server.target)
    names = [type(event).__name__ for event in events]
    assert (names.count("Accepted"), names.count("Started"), names.count("Image")) == (1, 1, 1)
    assert [event.step for event in events if isinstance(event, Preview)] == [1, 2]
    assert names.count("Retrying") == 2
    assert events[-1].data == PICTURE
    first, *others = server.requests
    assert first.options.idempotency_key
    assert others == [first, first]


@pytest.mark.parametrize("script", [BROKEN["socket"], BROKEN["truncated"]])
def test_without_a_key_nothing_is_taken_up(server: Any, caller: Any, script: Any) -> None:
    """A request without a key might be made and billed twice, so what breaks is final."""
    server.play(script)
    with pytest.raises((ConnectionLost, BrokenStream)):
        caller.image(server.target, idempotency_key="")
    assert len(server.requests) == 1
    assert "klein-idempotency-key" not in server.metadata[0]


def test_connection_reset(server: Any, caller: Any) -> None:
    """A connection that is reset in the middle is made anew; nothing is told twice, and the error is not shown."""
    seen = threading.Event()

    def half(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        seen.wait(20)
        relay.cut()
        yield from ending()

    def look(event: Any) -> None:
        if isinstance(event, Progress) and event.step == 2:
            seen.set()

    server.play(half, whole)
    with Relay(server.target) as relay:
        events = caller.events(relay.target, hook=look)
    assert [type(event).__name__ for event in events].count("Image") == 1
    assert [event.step for event in events if isinstance(event, Preview)] == [1, 2]
    assert server.requests[0] == server.requests[1]


def test_go_away(caller: Any) -> None:
    """A server that ends old connections, as behind load balancers, costs its streams nothing but a moment."""

    def quiet(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(20)

    scripted = Scripted()
    scripted.play(quiet, whole)
    ages = [("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 100)]
    with serving(scripted, options=ages):
        events = caller.events(scripted.target)
    assert events[-1].data == PICTURE
    assert [type(event).__name__ for event in events].count("Retrying") == 1
    assert scripted.requests[0] == scripted.requests[1]


def test_dead_connection(server: Any, caller: Any) -> None:
    """A connection on which nothing comes any more, but which nobody closed, is noticed by its pings."""

    def quiet(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        relay.freeze()
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(5)

    quick = {"grpc.keepalive_time_ms": 200, "grpc.http2.ping_timeout_ms": 200}
    caller.settings["channel_options"] = quick
    server.play(quiet, whole)
    with Relay(server.target) as relay:
        events = caller.events(relay.target)
    assert events[-1].data == PICTURE
    assert quick.keys() <= OPTIONS.keys()


def test_a_cut_connection_is_not_called_an_absent_server(server: Any, caller: Any) -> None:
    """Who loses the connection is told that, and where to."""

    def cut(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        relay.cut()

    server.play(cut)
    with Relay(server.target) as relay, pytest.raises(ConnectionLost, match=rf"connection to {relay.target} was lost"):
        caller.image(relay.target, idempotency_key="")


def test_it_goes_on_where_it_was(server: Any, caller: Any) -> None:
    """A stream that is attached to the running job begins with its present state; only the news are told."""

    def one_step(request: Any, context: grpc.ServicerContext) -> Any:
        yield from list(opening())[:5]
        context.abort(Code.UNAVAILABLE, "Socket closed")

    def attached(request: Any, context: grpc.ServicerContext) -> Any:
        accepted, _, started, *steps = opening(is_replay=True)
        yield from [accepted, started, *steps[2:]]
        yield from ending()

    server.play(one_step, attached)
    events = caller.events(server.target)
    names = [type(event).__name__ for event in events]
    assert names == ["Accepted", "Queued", "Started", "Progress", "Preview", "Retrying", "Progress", "Preview", "Image"]
    assert events[-1].is_replay
    assert not events[0].is_replay


def test_another_picture_is_told_anew(server: Any, caller: Any) -> None:
    """Where the server had lost the request and draws another seed, it is told from its beginning, with that seed."""

    def other(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening(seed=8)
        yield from ending()

    server.play(BROKEN["socket"], other)
    events = caller.events(server.target)
    assert [event.seed for event in events if isinstance(event, Accepted)] == [7, 8]
    assert [event.step for event in events if isinstance(event, Preview)] == [1, 2, 1, 2]
    assert events[-1].seed == 8


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (Code.FAILED_PRECONDITION, "RESULT_GONE", ResultGone),
        (Code.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", IdempotencyKeyReused),
    ],
)
def test_what_the_key_cannot_bring_back(server: Any, caller: Any, code: Any, reason: str, error: type) -> None:
    """An image that is gone, or a key that was used for something else, ends the request, with what it cost."""

    def gone(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, code, reason, cost_microusd="14000")
        yield from ()

    server.play(BROKEN["socket"], gone)
    with pytest.raises(error) as caught:
        caller.image(server.target)
    assert caught.value.metadata == {"cost_microusd": "14000"}
    assert len(server.requests) == 2


def test_attach_takes_up_again(server: Any, caller: Any) -> None:
    """Attaching is safe to repeat: the key is the request."""
    server.play(BROKEN["socket"], whole)
    assert caller.events(server.target, "attach", "key-1")[-1].data == PICTURE
    assert [request.idempotency_key for request in server.requests] == ["key-1", "key-1"]


def test_a_stream_that_breaks_for_ever_ends(server: Any, caller: Any) -> None:
    """A stream that brings nothing new ends with what broke it, within its timeout."""

    def never(request: Any, context: grpc.ServicerContext) -> Any:
        yield event()
        context.abort(Code.UNAVAILABLE, "Socket closed")

    server.play(never)
    with pytest.raises(KleinError):
        caller.image(server.target, timeout=0.5)
    assert len(server.requests) > 1
