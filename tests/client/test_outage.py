"""Servers that go away and come back, and many clients at one small queue (connection.py)."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from klein.v1 import image_pb2 as pb
from kleinclient import Client, Image, KleinError, QueueFull, Retry, Retrying
from kleinclient.connection import OPTIONS, Connection

from tests.client.conftest import PICTURE, Scripted, refuse, serving, whole


def draining(request: Any, context: grpc.ServicerContext) -> Any:
    refuse(context, grpc.StatusCode.UNAVAILABLE, "DRAINING", retry_seconds=0.01)
    yield from ()


def test_restart(caller: Any) -> None:
    """A request that meets a server as it goes down is made by the one that comes back on the same port."""
    before, after = Scripted(), Scripted()
    before.play(draining)
    after.play(whole)
    with ExitStack() as first, ExitStack() as second:
        port = first.enter_context(serving(before))

        def look(event: Any) -> None:
            match event:
                case Retrying(reason="DRAINING"):
                    first.close()
                case Retrying(message=message) if "no klein server answers" in message and not after.target:
                    second.enter_context(serving(after, port))

        events = caller.events(before.target, hook=look, timeout=60)
    assert events[-1].data == PICTURE
    assert [event.reason for event in events if isinstance(event, Retrying)][:2] == ["DRAINING", "UNAVAILABLE"]
    assert after.requests == [before.requests[0]]


def test_an_absent_server_is_an_outage_to_who_knew_it() -> None:
    """A client whose server answered before waits for its return; one that never met it fails at once."""
    scripted = Scripted()
    scripted.play(whole)
    with ExitStack() as first, ExitStack() as second:
        port = first.enter_context(serving(scripted))
        with Client(scripted.target) as klein:
            klein.generate("x").result()
            first.close()
            stream = iter(klein.generate("y", timeout=60))
            assert isinstance(next(stream), Retrying)
            second.enter_context(serving(scripted, port))
            assert [event for event in stream if isinstance(event, Image)]
    assert [request.prompt for request in scripted.requests] == ["x", "y"]


def test_records_go_on_after_a_break(server: Any, caller: Any) -> None:
    """A listing that breaks goes on after the last record, and none comes twice."""
    from klein.v1 import usage_pb2

    from tests.client.test_client import END, START

    def records(*numbers: int) -> Iterator[Any]:
        for number in numbers:
            yield usage_pb2.ListUsageRecordsResponse(record=usage_pb2.UsageRecord(record_id=str(number)))

    def broken(request: Any, context: grpc.ServicerContext) -> Any:
        yield from records(1, 2)
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    server.play(broken, lambda request, context: records(3))
    said = caller.ask(server.target, "usage_records", START, END, after_record_id="0")
    assert [record.record_id for record in said] == ["1", "2", "3"]
    assert [request.after_record_id for request in server.requests] == ["0", "2"]


class SmallQueue:
    """A server that makes one image at a time, lets eight wait, and says to the others when there will be room."""

    def __init__(self, image_seconds: float):
        self._seconds = image_seconds
        self._places = threading.BoundedSemaphore(9)
        self._engine = threading.Lock()

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.ImageEvent]:
        if not self._places.acquire(blocking=False):
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_seconds=8 * self._seconds)
        try:
            with self._engine:
                time.sleep(self._seconds)  # what is measured is the clients' behaviour over time
        finally:
            self._places.release()
        yield from whole(request, context)


@pytest.mark.parametrize("is_shared", [False, True], ids=["80 clients", "one client"])
def test_no_storm(is_shared: bool) -> None:
    """80 requests at once for a queue of 8 all end served or refused, and ask less than three times each."""
    scripted = Scripted()
    scripted.play(SmallQueue(0.02))
    retry = Retry(backoff=0.1)

    def ask(shared: Client) -> bool:
        with ExitStack() as stack:
            klein = shared if is_shared else stack.enter_context(Client(scripted.target, retry=retry))
            try:
                return klein.generate("x").result().data == PICTURE
            except QueueFull:
                return False

    with serving(scripted, workers=100), Client(scripted.target, retry=retry) as shared, ThreadPoolExecutor(80) as pool:
        served = list(pool.map(ask, [shared] * 80))
    assert sum(served) >= 60
    assert len(scripted.requests) < 3 * 80


def test_channel_options() -> None:
    """A lost connection is tried again within five seconds, a quiet one is pinged; options of the caller override."""
    options = dict(Connection("klein.example", {}).options)
    assert options["grpc.max_reconnect_backoff_ms"] == 5000
    assert (options["grpc.keepalive_time_ms"], options["grpc.http2.ping_timeout_ms"]) == (20_000, 10_000)
    own = {"grpc.keepalive_time_ms": 60_000, "grpc.lb_policy_name": "round_robin"}
    assert dict(Connection("dns:///x", {"channel_options": own}).options) == {**OPTIONS, **own}


def test_round_robin(server: Any) -> None:
    """With round_robin over several addresses the requests are spread over them."""
    other = Scripted()
    server.play(whole)
    other.play(whole)
    with serving(other):
        target = f"ipv4:{server.target},{other.target}"
        with Client(target, channel_options={"grpc.lb_policy_name": "round_robin"}) as klein:
            end = time.monotonic() + 20
            while not (server.requests and other.requests) and time.monotonic() < end:
                klein.generate("x").result()
    assert server.requests
    assert other.requests


def test_unix_socket(server: Any, tmp_path: Any) -> None:
    """A server on a socket file is reached by it; one that is not there is named."""
    with Client(f"unix:{tmp_path}/none.sock") as klein, pytest.raises(KleinError, match=r"none\.sock: .*No such file"):
        klein.capabilities()


def test_endless_timeout(server: Any, caller: Any) -> None:
    """An infinite timeout, and one of thirty years, are no error."""
    server.play(whole)
    for timeout in (float("inf"), 9e8):
        assert caller.image(server.target, timeout=timeout).data == PICTURE
