"""Keys as they are sent: in the message and beside it, random where none is given, left out where a server has none."""

from typing import Any

import grpc
import pytest
from klein.v1 import image_pb2 as pb
from kleinclient import AsyncClient, Client, InvalidField

from tests.client.conftest import PICTURE, opening, refuse, whole


def no_keys(request: Any, context: grpc.ServicerContext) -> Any:
    """A server of before: it refuses the field, and makes images without it."""
    if request.options.idempotency_key or request.options.on_disconnect:
        fields = {"options.idempotency_key": "not supported by this server"}
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields=fields)
    yield from whole(request, context)


def test_random_key(server: Any, caller: Any) -> None:
    """Every request has a key of its own, the same in the message and in the metadata."""
    server.play(whole)
    caller.image(server.target)
    caller.events(server.target, "edit", "x", [b"reference"])
    keys = [request.options.idempotency_key for request in server.requests]
    assert len(set(keys)) == 2
    assert keys == [metadata["klein-idempotency-key"] for metadata in server.metadata]
    assert all(request.options.on_disconnect == pb.ON_DISCONNECT_UNSPECIFIED for request in server.requests)


def test_given_key(server: Any, caller: Any) -> None:
    """A key that is given is sent as it is, with DETACH where that was asked for; attach and cancel name it, too."""
    server.play(whole)
    caller.image(server.target, idempotency_key="key 1", detach=True)
    caller.events(server.target, "attach", "key 1")
    server.play(lambda request, context: iter([pb.CancelResponse()]))
    caller.ask(server.target, "cancel", "key 1")
    assert server.requests[0].options.idempotency_key == "key 1"
    assert server.requests[0].options.on_disconnect == pb.ON_DISCONNECT_DETACH
    assert [metadata["klein-idempotency-key"] for metadata in server.metadata] == ["key 1"] * 3
    assert server.requests[2] == pb.CancelRequest(idempotency_key="key 1")


def test_server_without_keys(server: Any) -> None:
    """A server that takes no keys is asked without one, and later requests of the same client do not offer theirs."""
    server.play(no_keys)
    with Client(server.target) as klein:
        stream = klein.generate("a red circle")
        assert stream.result().data == klein.generate("a red circle").result().data == PICTURE
    assert [bool(request.options.idempotency_key) for request in server.requests] == [True, False, False]
    assert ["klein-idempotency-key" in metadata for metadata in server.metadata] == [True, False, False]
    assert stream.idempotency_key == ""


@pytest.mark.parametrize("options", [{"idempotency_key": "mine"}, {"detach": True}])
def test_a_key_that_was_asked_for_is_not_dropped(server: Any, caller: Any, options: Any) -> None:
    """Who chose a key, or wants the request to outlive the stream, is told that the server cannot do it."""
    server.play(no_keys)
    with pytest.raises(InvalidField, match="INVALID_FIELD"):
        caller.image(server.target, **options)
    assert len(server.requests) == 1


def test_key_of_a_stream(server: Any) -> None:
    """A stream says its key, so that a detached request can be found again."""
    server.play(whole)
    with Client(server.target) as klein:
        stream = klein.generate("a red circle", detach=True)
        assert stream.result().is_replay is False
    assert stream.idempotency_key == server.requests[0].options.idempotency_key != ""


def test_replay(server: Any, caller: Any) -> None:
    """An image that was made before says so."""

    def replay(request: Any, context: grpc.ServicerContext) -> Any:
        for message in whole(request, context):
            if message.WhichOneof("event") == "accepted":
                message.accepted.is_replay = True
            yield message

    server.play(replay)
    accepted, *_, image = caller.events(server.target, "attach", "key-1")
    assert accepted.is_replay
    assert image.is_replay


async def test_key_before_the_first_event(server: Any) -> None:
    """The asynchronous stream has its key before the server has said anything."""
    server.play(lambda request, context: opening())
    async with AsyncClient(server.target) as klein:
        assert klein.generate("a red circle", idempotency_key="mine").idempotency_key == "mine"
