"""Sending again: only what is safe, when the server says, a bounded number of times, never past the deadline."""

from typing import Any

import grpc
import pytest
from kleinclient import Draining, KleinError, NotReady, QueueFull, Retry, Retrying, ServerUnreachable
from kleinclient.retry import Attempts

from tests.client.conftest import PICTURE, ending, opening, refuse

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


def whole(request: Any, context: grpc.ServicerContext) -> Any:
    yield from opening()
    yield from ending()


def refusal(code: grpc.StatusCode, reason: str, retry_seconds: float | None = 0.01) -> Any:
    def script(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, code, reason, retry_seconds=retry_seconds)
        yield from ()

    return script


def half(request: Any, context: grpc.ServicerContext) -> Any:
    """Dies in the middle of the image, as when the server's machine does."""
    yield from opening()
    yield from list(ending())[:2]
    context.abort(UNAVAILABLE, "Socket closed")


@pytest.mark.parametrize(
    ("code", "reason"), [(UNAVAILABLE, "NOT_READY"), (UNAVAILABLE, "DRAINING"), (EXHAUSTED, "QUEUE_FULL")]
)
def test_invited(server: Any, caller: Any, code: grpc.StatusCode, reason: str) -> None:
    """A server that says when to come back is asked again then, and the reader is told."""
    server.play(refusal(code, reason), whole)
    first, *_, last = caller.events(server.target)
    assert first == Retrying(0.01, reason, "no")
    assert last.data == PICTURE
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (refusal(UNAVAILABLE, "NOT_READY"), NotReady),
        (refusal(EXHAUSTED, "QUEUE_FULL"), QueueFull),
    ],
)
def test_attempts_are_bounded(server: Any, caller: Any, script: Any, error: type[KleinError]) -> None:
    """A server that never has room is asked three times, as the policy says, and then the error is raised."""
    server.play(script)
    with pytest.raises(error):
        caller.image(server.target)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "script",
    [
        refusal(UNAVAILABLE, "NOT_READY", retry_seconds=None),
        refusal(grpc.StatusCode.FAILED_PRECONDITION, "ALPHA_UNAVAILABLE"),
        refusal(grpc.StatusCode.INTERNAL, "INTERNAL"),
        half,
    ],
)
def test_not_again(server: Any, caller: Any, script: Any) -> None:
    """Without an invitation, with another status, or after the first event, a request is sent once."""
    server.play(script)
    with pytest.raises(KleinError):
        caller.image(server.target)
    assert len(server.requests) == 1


def test_lost_connection_with_a_key(server: Any, caller: Any) -> None:
    """With an idempotency key a lost stream is taken up again, and its events are not told twice."""
    server.play(half, whole)
    events = caller.events(server.target, idempotency_key="key-1")
    names = [type(event).__name__ for event in events]
    assert names.count("Accepted") == names.count("Started") == names.count("Retrying") == names.count("Image") == 1
    assert events[-1].data == PICTURE
    assert [request.options.idempotency_key for request in server.requests] == ["key-1", "key-1"]


def test_attach_takes_up_again(server: Any, caller: Any) -> None:
    """Attaching is safe to repeat: the key is the request."""
    server.play(half, whole)
    assert caller.events(server.target, "attach", "key-1")[-1].data == PICTURE
    assert [request.idempotency_key for request in server.requests] == ["key-1", "key-1"]


def test_deadline_bounds_the_waiting(server: Any, caller: Any) -> None:
    """A delay that ends past the deadline is not waited for: the server's own error is raised at once."""
    server.play(refusal(UNAVAILABLE, "DRAINING", retry_seconds=30))
    with pytest.raises(Draining) as caught:
        caller.image(server.target, timeout=5)
    assert caught.value.retry_delay == 30


def failure(status: str = "UNAVAILABLE", delay: float | None = 1.0) -> KleinError:
    return KleinError("no", status=status, retry_delay=delay)


LOST = ServerUnreachable("lost", status="UNAVAILABLE")


@pytest.mark.parametrize(
    ("error", "attempt", "heard", "has_key", "delay"),
    [
        (failure(), 1, False, False, 1.0),
        (failure("RESOURCE_EXHAUSTED", 2.5), 3, False, False, 2.5),
        (failure(), 4, False, False, None),
        (failure(delay=61), 1, False, False, None),
        (failure(delay=None), 1, False, False, None),
        (failure(), 1, True, False, None),
        (failure(), 1, True, True, 1.0),
        (failure("INTERNAL"), 1, False, True, None),
        (LOST, 1, False, True, None),
        (LOST, 1, True, False, None),
        (LOST, 1, True, True, 0.5),
        (LOST, 3, True, True, 2.0),
    ],
)
def test_policy(error: KleinError, attempt: int, heard: bool, has_key: bool, delay: float | None) -> None:
    """The whole policy as a table."""
    retry = Retry(attempts=4, delay_max=60, backoff=0.5, jitter=0)
    assert retry.delay(error, attempt, heard=heard, has_key=has_key) == delay


def test_jitter_only_adds() -> None:
    """Nobody comes back earlier than the server said, and nobody much later."""
    delays = [Retry(jitter=0.2).delay(failure(), 1, heard=False, has_key=False) for _ in range(100)]
    assert all(1.0 <= delay <= 1.2 for delay in delays if delay is not None)
    assert len(set(delays)) > 1


def test_seconds_left_cover_all_attempts() -> None:
    """The timeout is for the whole request: a later attempt gets what the earlier ones left."""
    now = [100.0]
    attempts = Attempts(Retry(jitter=0), timeout=10, has_key=False, clock=lambda: now[0])
    assert attempts.seconds_left() == 10
    now[0] = 104
    attempts.failed(failure())
    assert attempts.seconds_left() == 6
    now[0] = 109.5
    with pytest.raises(KleinError):
        attempts.failed(failure())
