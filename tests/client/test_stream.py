"""Streams of both clients, against a server that says what the test wrote ({events,names}.py)."""

import asyncio
import hashlib
import threading
import time
from typing import Any

import grpc
import pytest
from klein.v1 import image_pb2 as pb
from kleinclient import AsyncClient, Cancelled, Client, DeadlineExceeded, Image, ServerUnreachable, Size

from tests.client.conftest import PICTURE, ending, opening, refuse, whole


def test_events_come_typed_and_in_order(server: Any, caller: Any) -> None:
    """A stream gives every event once, in order, and the image last."""
    server.play(whole)
    events = caller.events(server.target)
    names = [type(event).__name__ for event in events]
    assert names == ["Accepted", "Queued", "Started", "Progress", "Preview", "Progress", "Preview", "Image"]
    accepted, queued, started, *_ = events
    assert (accepted.seed, accepted.size, accepted.steps, accepted.model) == (7, Size(64, 32), 2, "mini")
    assert (queued.position, queued.estimated_wait, started.queue_wait) == (1, 2.0, 0.25)


def test_image_is_whole(server: Any, caller: Any, tmp_path: Any) -> None:
    """The image has the bytes, the facts and the cost that the server gave, and says them in one line."""
    server.play(whole)
    image = caller.image(server.target)
    assert image.data == PICTURE == image.save(tmp_path / "out.png").read_bytes()
    assert image.sha256 == hashlib.sha256(PICTURE).hexdigest()
    assert (image.format, image.mime_type, image.size, image.alpha_method) == ("png", "image/png", (64, 32), "opaque")
    assert (image.seed, image.request_id, image.max_step_requests, image.previews_skipped) == (7, "request-1", 3, 1)
    assert (image.usage.cost_microusd, image.timings.denoise) == (14_000, 0.4)
    assert str(image) == "64x32 PNG seed 7: 1 MP, $0.014000 (test), 0.42 s"
    assert str(PICTURE[:8]) not in repr(image)


def test_previews_then_image(server: Any, caller: Any, tmp_path: Any) -> None:
    """Previews can be read on their own, and the image taken afterwards."""
    server.play(whole)
    previews, image = caller.previews(server.target)
    assert [(p.step, p.total_steps, p.format, p.size, p.data) for p in previews] == [
        (1, 2, "jpeg", (8, 4), b"jpeg1"),
        (2, 2, "jpeg", (8, 4), b"jpeg2"),
    ]
    assert previews[0].save(tmp_path / "step-1.jpg").read_bytes() == b"jpeg1"
    assert isinstance(image, Image)


def test_unknown_events_and_values_are_ignored(server: Any, caller: Any) -> None:
    """An event, a field or an enum value from a later contract does no harm."""

    def later(request: Any, context: grpc.ServicerContext) -> Any:
        yield pb.ImageEvent.FromString(b"\xfa\x01\x03abc")  # field 31: an event that this client cannot know
        yield from opening()
        yield pb.ImageEvent(request_id="request-1")
        yield from ending(format=99, alpha_method=99)

    server.play(later)
    image = caller.image(server.target)
    assert (image.format, image.alpha_method, image.data) == ("", "", PICTURE)


def test_leaving_the_loop_cancels(server: Any, caller: Any) -> None:
    """Breaking out of an iteration ends the request at the server."""
    ended = threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        yield from opening()
        ended.wait(20)

    server.play(endless)
    caller.leave_early(server.target, lambda: ended.wait(10))
    assert ended.is_set()


def test_deadline(server: Any, caller: Any) -> None:
    """A stream that outlasts its timeout is DeadlineExceeded."""

    def slow(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        threading.Event().wait(1)

    server.play(slow)
    with pytest.raises(DeadlineExceeded, match="the deadline passed"):
        caller.image(server.target, timeout=0.3)


def test_no_server(caller: Any) -> None:
    """Where nothing listens, the error says where and why, in one line and at once."""
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable) as caught:
        caller.image("127.0.0.1:9")
    assert str(caught.value).startswith("no klein server answers at 127.0.0.1:9: Connection refused")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 5


def test_close_from_another_thread(server: Any) -> None:
    """A blocking reader whose stream is closed elsewhere gets Cancelled, then and later."""
    release = threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        yield from opening()
        release.wait(10)

    server.play(endless)
    with Client(server.target) as klein, klein.generate("a red circle") as stream:
        threading.Timer(0.1, stream.close).start()
        with pytest.raises(Cancelled):
            stream.result()
        with pytest.raises(Cancelled):
            stream.result()
    release.set()


async def test_cancelled_task(server: Any) -> None:
    """A cancelled task stays cancelled: the stream does not turn it into an error of its own."""
    begun, ended = threading.Event(), threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        yield from opening()
        begun.set()
        ended.wait(20)

    server.play(endless)
    async with AsyncClient(server.target) as klein:
        stream = klein.generate("a red circle")
        task = asyncio.create_task(stream.result())
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 10)
        with pytest.raises(Cancelled):
            await stream


def test_streams_run_side_by_side(server: Any) -> None:
    """A request is under way before its stream is read, so two of them need no threads."""
    both = threading.Barrier(2, timeout=10)

    def together(request: Any, context: grpc.ServicerContext) -> Any:
        both.wait()
        yield from whole(request, context)

    server.play(together)
    with Client(server.target) as klein:
        first, second = klein.generate("a red circle"), klein.generate("a blue square")
        assert first.result().data == second.result().data == PICTURE


def test_refusal_is_raised_again(server: Any) -> None:
    """A stream that failed keeps its error; it does not ask the server again."""

    def no(request: Any, context: grpc.ServicerContext) -> Any:
        refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "ALPHA_UNAVAILABLE")
        yield from ()

    server.play(no)
    with Client(server.target) as klein:
        stream = klein.generate("a red circle")
        errors = []
        for _ in range(2):
            with pytest.raises(Exception, match="ALPHA_UNAVAILABLE") as caught:
                stream.result()
            errors.append(caught.value)
        assert errors[0] is errors[1]
    assert len(server.requests) == 1
