"""Keyed calls that reach the server that does not own their key: they land on the one that does."""

import asyncio
import uuid

import grpc
import pytest
from klein.v1 import image_pb2, image_pb2_grpc
from kleinserve.rpc.call import FORWARDED_CALLER

from tests.e2e.calls import generate, opened, refused, until
from tests.replicas.cluster import Server
from tests.replicas.conftest import MAX_STEPS, Books

Stub = image_pb2_grpc.ImageServiceStub


def key() -> str:
    return uuid.uuid4().hex


async def events(call: "grpc.aio.UnaryStreamCall") -> list[image_pb2.ImageEvent]:
    """All of a stream that ends OK."""
    return [event async for event in call]


def picture(events: list[image_pb2.ImageEvent]) -> bytes:
    return b"".join(event.image_chunk.data for event in events)


def requests(*servers: Server) -> list[float]:
    return [server.counted("klein_requests_total") for server in servers]


async def test_a_repeat_is_replayed_by_the_owner(pair: tuple[Server, Server], books: Books) -> None:
    """The same request at the other server gets the owner's image and request id; only the owner counts it, once."""
    first, second = pair
    asked = generate(seed=5, idempotency_key=key())
    async with opened(first.target) as here, opened(second.target) as there:
        drawn = await events(Stub(here).Generate(asked))
        before = requests(first, second)
        repeated = Stub(there).Generate(asked)
        replayed = await events(repeated)
        metadata = dict(await repeated.initial_metadata())
    assert picture(replayed) == picture(drawn)
    assert replayed[0].accepted.is_replay
    assert {event.request_id for event in replayed} == {drawn[0].request_id}
    assert [event.sequence for event in replayed] == list(range(len(replayed)))
    assert metadata["klein-request-id"]
    assert requests(first, second) == [before[0] + 1, before[1]]
    assert books.billed([drawn[0].request_id]) == 1
    assert books.owner(asked.options.idempotency_key) == "a"


async def test_a_running_job_is_attached_to_and_cancelled(pair: tuple[Server, Server]) -> None:
    """Attach at the other server follows the owner's job; Cancel there ends it, and both streams say so."""
    first, second = pair
    asked = generate(steps=MAX_STEPS, idempotency_key=key())
    async with opened(first.target) as here, opened(second.target) as there:
        running = Stub(here).Generate(asked)
        await until(running, "progress")
        attached = Stub(there).Attach(image_pb2.AttachRequest(idempotency_key=asked.options.idempotency_key))
        await until(attached, "progress")
        await Stub(there).Cancel(image_pb2.CancelRequest(idempotency_key=asked.options.idempotency_key))
        for stream in (running, attached):
            code, reason, _ = await refused(stream)
            assert (code, reason) == (grpc.StatusCode.CANCELLED, "CANCELLED")


async def test_a_reader_that_leaves_ends_the_job_at_its_owner(pair: tuple[Server, Server], books: Books) -> None:
    """A passed-on stream that is cancelled leaves the owner's job; as its last reader it ends it and frees the key."""
    first, second = pair
    asked = generate(steps=MAX_STEPS, idempotency_key=key())
    async with opened(first.target) as here, opened(second.target) as there:
        running = Stub(here).Generate(asked)
        await until(running, "progress")
        repeated = Stub(there).Generate(asked)
        await until(repeated, "progress")
        running.cancel()
        await until(repeated, "progress")  # it goes on for the one that is left
        repeated.cancel()
        async with asyncio.timeout(30):
            while books.owner(asked.options.idempotency_key):  # noqa: ASYNC110  # a database has nothing to await
                await asyncio.sleep(0.05)


async def test_a_deadline_holds_at_the_owner(pair: tuple[Server, Server]) -> None:
    """A repeat with a deadline of its own is ended by it, while the job goes on for its first reader."""
    first, second = pair
    asked = generate(steps=MAX_STEPS, idempotency_key=key())
    async with opened(first.target) as here, opened(second.target) as there:
        running = Stub(here).Generate(asked)
        await until(running, "progress")
        repeated = Stub(there).Attach(image_pb2.AttachRequest(idempotency_key=asked.options.idempotency_key), timeout=2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await events(repeated)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(running, "progress")
        running.cancel()


async def test_refusals_are_the_same_from_either(pair: tuple[Server, Server]) -> None:
    """Another request under a used key, and a key that was given up, are refused alike by both servers."""
    first, second = pair
    asked = generate(seed=5, idempotency_key=key())
    other = generate(seed=6, idempotency_key=asked.options.idempotency_key)
    name = image_pb2.AttachRequest(idempotency_key=asked.options.idempotency_key)
    async with opened(first.target) as here, opened(second.target) as there:
        await events(Stub(here).Generate(asked))
        for channel in (here, there):
            code, reason, _ = await refused(Stub(channel).Generate(other))
            assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
        await Stub(there).Cancel(image_pb2.CancelRequest(idempotency_key=asked.options.idempotency_key))
        for channel in (here, there):
            code, reason, _ = await refused(Stub(channel).Attach(name))
            assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_KEY")


async def test_forwarded_at_most_once(pair: tuple[Server, Server]) -> None:
    """What a replica has passed on and is again another's is UNAVAILABLE, and says when to try again."""
    first, second = pair
    asked = generate(seed=5, idempotency_key=key())
    async with opened(first.target) as here, opened(second.target) as there:
        await events(Stub(here).Generate(asked))
        again = Stub(there).Generate(asked, metadata=((FORWARDED_CALLER, "anonymous"),))
        code, reason, details = await refused(again)
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    assert "RetryInfo" in details


async def test_no_other_caller_where_there_are_none(pair: tuple[Server, Server]) -> None:
    """Without a callers file nobody may call for anyone but `anonymous`."""
    async with opened(pair[0].target) as here:
        code, reason, _ = await refused(Stub(here).Generate(generate(), metadata=((FORWARDED_CALLER, "web"),)))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
