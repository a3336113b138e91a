"""Sending again: only what is safe, not before the server says, a bounded number of times, never past the deadline."""

from typing import Any

import grpc
import pytest
from kleinclient import (
    BrokenStream,
    ConnectionLost,
    Draining,
    KleinError,
    NotReady,
    QueueFull,
    Retry,
    Retrying,
    ServerError,
    ServerUnreachable,
)
from kleinclient.retry import Attempts, Contact

from tests.client.conftest import PICTURE, refuse, whole

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


def refusal(code: grpc.StatusCode, reason: str, retry_seconds: float | None = 0.01) -> Any:
    def script(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, code, reason, retry_seconds=retry_seconds)
        yield from ()

    return script


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (UNAVAILABLE, "NOT_READY"),
        (UNAVAILABLE, "DRAINING"),
        (UNAVAILABLE, "LEDGER_UNAVAILABLE"),
        (EXHAUSTED, "QUEUE_FULL"),
        (EXHAUSTED, "QUOTA_EXCEEDED"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"idempotency_key": ""}], ids=["key", "no key"])
def test_invited(server: Any, caller: Any, options: Any, code: grpc.StatusCode, reason: str) -> None:
    """A server that says when to come back is asked again then, and the reader is told."""
    server.play(refusal(code, reason), whole)
    first, *_, last = caller.events(server.target, **options)
    assert first == Retrying(0.01, reason, "no")
    assert last.data == PICTURE
    assert len(server.requests) == 2


def test_refusals_are_bounded(server: Any, caller: Any) -> None:
    """A server that never has room is asked three times, as the policy says, and then the error is raised."""
    server.play(refusal(EXHAUSTED, "QUEUE_FULL"))
    with pytest.raises(QueueFull):
        caller.image(server.target)
    assert len(server.requests) == 3


def test_a_server_that_warms_up_is_waited_for(server: Any, caller: Any) -> None:
    """A server that will be ready is asked more often than one that refuses: patience is counted in seconds."""
    server.play(*[refusal(UNAVAILABLE, "NOT_READY")] * 6, whole)
    assert caller.image(server.target).data == PICTURE
    assert len(server.requests) == 7


@pytest.mark.parametrize(
    "script",
    [
        refusal(UNAVAILABLE, "NOT_READY", retry_seconds=None),
        refusal(grpc.StatusCode.FAILED_PRECONDITION, "ALPHA_UNAVAILABLE"),
        refusal(grpc.StatusCode.INTERNAL, "INTERNAL"),
        refusal(grpc.StatusCode.CANCELLED, "CANCELLED"),
        refusal(EXHAUSTED, "QUEUE_FULL", retry_seconds=61),
    ],
)
def test_not_again(server: Any, caller: Any, script: Any) -> None:
    """Without an invitation, with another status, or invited for too late, a request is sent once."""
    server.play(script)
    with pytest.raises(KleinError):
        caller.image(server.target)
    assert len(server.requests) == 1


def test_retrying_can_be_turned_off(server: Any, caller: Any) -> None:
    """With one attempt every failure is final."""
    caller.settings["retry"] = Retry(attempts=1)
    server.play(refusal(UNAVAILABLE, "NOT_READY"))
    with pytest.raises(NotReady):
        caller.image(server.target)
    assert len(server.requests) == 1


def test_deadline_bounds_the_waiting(server: Any, caller: Any) -> None:
    """A delay that ends past the deadline is not waited for: the server's own error is raised at once."""
    server.play(refusal(UNAVAILABLE, "DRAINING", retry_seconds=30))
    with pytest.raises(Draining) as caught:
        caller.image(server.target, timeout=5)
    assert caught.value.retry_after == 30


def failure(status: str = "UNAVAILABLE", after: float | None = 1.0, kind: type[KleinError] = KleinError) -> KleinError:
    return kind("no", status=status, reason="BUSY", retry_after=after)


LOST = ConnectionLost("lost", status="UNAVAILABLE")
UNREACHABLE = ServerUnreachable("refused", status="UNAVAILABLE")
TRANSPORT = ServerError("RST_STREAM", status="INTERNAL")
BROKEN = BrokenStream("no image", status="DATA_LOSS", reason="BROKEN_STREAM")
SEEN, NEW, KEY, NO_KEY, HEARD, UNHEARD = True, False, True, False, True, False


@pytest.mark.parametrize(
    ("error", "has_answered", "repeatable", "heard", "is_sent_again"),
    [
        (failure(), NEW, NO_KEY, UNHEARD, True),
        (failure(), NEW, NO_KEY, HEARD, False),
        (failure(), NEW, KEY, HEARD, True),
        (failure("RESOURCE_EXHAUSTED"), NEW, NO_KEY, UNHEARD, True),
        (failure(after=None), SEEN, KEY, UNHEARD, False),
        (failure("INTERNAL"), SEEN, KEY, UNHEARD, False),
        (UNREACHABLE, NEW, KEY, UNHEARD, False),
        (UNREACHABLE, SEEN, KEY, UNHEARD, True),
        (UNREACHABLE, SEEN, NO_KEY, UNHEARD, True),
        (UNREACHABLE, SEEN, NO_KEY, HEARD, False),
        (LOST, NEW, KEY, UNHEARD, True),
        (LOST, SEEN, NO_KEY, UNHEARD, False),
        (LOST, SEEN, KEY, HEARD, True),
        (TRANSPORT, SEEN, KEY, HEARD, True),
        (TRANSPORT, SEEN, NO_KEY, HEARD, False),
        (BROKEN, SEEN, KEY, HEARD, True),
        (BROKEN, SEEN, NO_KEY, HEARD, False),
    ],
)
def test_what_is_safe(
    error: KleinError, has_answered: bool, repeatable: bool, heard: bool, is_sent_again: bool
) -> None:
    """A request is sent again where that cannot make two images, and where somebody may be there to take it."""
    contact = Contact(Retry())
    contact.has_answered = has_answered
    attempts = Attempts(Retry(), contact, timeout=None, repeatable=repeatable)
    attempts.heard = heard
    if is_sent_again:
        attempts.failed(error)
    else:
        with pytest.raises(KleinError) as caught:
            attempts.failed(error)
        assert caught.value is error


@pytest.mark.parametrize(
    ("after", "attempt", "least", "most"),
    [
        (None, 1, 0, 0.25),
        (None, 3, 0, 1.0),
        (None, 99, 0, 5.0),
        (2.0, 1, 2.0, 6.0),
        (2.0, 2, 2.0, 10.0),
        (2.0, 9, 2.0, 10.0),
        (30.0, 9, 30.0, 90.0),
    ],
)
def test_delays(after: float | None, attempt: int, least: float, most: float) -> None:
    """Delays double up to a bound and are spread by chance; nobody comes back earlier than the server said."""
    error = failure(after=after)
    delays = [sum(Retry().delay(error, attempt, chance)) for chance in (0.0, 0.5, 1.0)]
    assert delays == [least, (least + most) / 2, most]


def test_pace() -> None:
    """All requests of one client together resend ten at once and then ten a second."""
    now = [100.0]
    contact = Contact(Retry(burst=10, per_second=10), clock=lambda: now[0])
    assert [round(contact.turn(), 3) for _ in range(12)] == [0.0] * 10 + [0.1, 0.2]
    now[0] = 200.0
    assert contact.turn() == 0


class Time:
    """An attempt's clock, moved by hand."""

    def __init__(self, timeout: float | None):
        self.now = 100.0
        self.contact = Contact(Retry(), clock=lambda: self.now)
        self.attempts = Attempts(
            Retry(jitter=0), self.contact, timeout=timeout, repeatable=True, clock=lambda: self.now
        )


def test_seconds_left_cover_all_attempts() -> None:
    """The timeout is for the whole request: a later attempt gets what the earlier ones left."""
    time = Time(timeout=10)
    assert time.attempts.seconds_left() == 10
    time.now = 104
    time.attempts.failed(failure())
    assert time.attempts.seconds_left() == 6
    time.now = 109.5
    with pytest.raises(KleinError):
        time.attempts.failed(failure())


def test_an_outage_is_bounded_by_patience_and_by_the_timeout() -> None:
    """A server that went away is tried for 60 s, or as long as the timeout lasts; news from it begin anew."""
    for timeout, end in [(None, 60), (500, 499)]:
        time = Time(timeout)
        time.contact.has_answered = True
        time.attempts.failed(LOST)
        time.now = 100 + end - 1
        time.attempts.failed(UNREACHABLE)
        time.attempts.progressed()
        time.attempts.failed(UNREACHABLE)
        time.now += end + 1
        with pytest.raises(ServerUnreachable):
            time.attempts.failed(UNREACHABLE)


def test_chance_does_not_miss_the_deadline() -> None:
    """What chance adds to a delay never takes more than half of the time that is left."""
    time = Time(timeout=1.2)
    delays = {Attempts(Retry(), time.contact, timeout=1.2, repeatable=True).failed(failure()).delay for _ in range(9)}
    assert all(1.0 <= delay < 1.2 for delay in delays)
