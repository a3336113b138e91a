"""Requests through fronts and replicas that are killed and replaced (backend/ray/{front,replica,router}.py)."""

import re
import uuid
from pathlib import Path

import grpc
import numpy as np
from google.rpc import error_details_pb2
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import edit, final, generate, opened, png, refused, until
from tests.e2e.conftest import served
from tests.ray import trials
from tests.ray.cluster import Cluster

MIB = 1024 * 1024


async def test_the_same_images(whole: Cluster) -> None:
    """A generation and an edit are, through either front, those of a local server."""
    asked = [generate(seed=3), edit([png(), png(1024, 768, "blue")], seed=4, width=64, height=64)]
    with served(KLEINSERVE_THREADS="1") as local:
        for request in asked:
            async with opened(local.target) as channel:
                expected, _ = await final(channel, request)
            for target in whole.targets():
                async with opened(target) as channel:
                    drawn, completed = await final(channel, request)
                assert np.array_equal(drawn, expected)
                assert completed.usage.billable


def test_no_torch_in_a_front(whole: Cluster) -> None:
    """A replica has loaded torch, a front has not."""
    for deployment, has_torch in (("Front", False), ("Replica", True)):
        for actor in whole.actors(deployment):
            assert ("libtorch" in Path(f"/proc/{actor.pid}/maps").read_text()) == has_torch


def test_metrics(whole: Cluster) -> None:
    """A front counts requests, a replica what its engine does."""
    fronts = [whole.metrics(front) for front in whole.actors("Front")]
    replicas = [whole.metrics(replica) for replica in whole.actors("Replica")]
    assert any('klein_requests_total{code="OK"' in page for page in fronts)
    assert any(re.search(r'klein_stage_seconds_count\{stage="step"\} [1-9]', page) for page in replicas)
    assert all("klein_build_info{" in page for page in replicas)


async def test_refusals_arrive(whole: Cluster) -> None:
    """What a replica refuses reaches the caller with its status and its details."""
    async with opened(whole.targets()[0]) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(steps=5000), timeout=2)
        code, reason, _ = await refused(call)
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(steps=5001))
        code, reason, details = await refused(call)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert isinstance(details["BadRequest"], error_details_pb2.BadRequest)


async def test_a_key_is_its_fronts(whole: Cluster) -> None:
    """What one front has drawn under a key the other one replays; what runs under one it follows, and cancels."""
    done = generate(seed=5, idempotency_key=uuid.uuid4().hex)
    running = generate(steps=5000, idempotency_key=uuid.uuid4().hex)
    name = running.options.idempotency_key
    first, second = whole.targets()
    async with opened(first) as here, opened(second) as there:
        drawn, completed = await final(here, done)
        replayed, again = await final(there, done)
        assert np.array_equal(replayed, drawn)
        assert again.usage == completed.usage
        stub = image_pb2_grpc.ImageServiceStub(there)
        assert (await until(stub.Generate(done), "accepted")).accepted.is_replay
        streams = [image_pb2_grpc.ImageServiceStub(here).Generate(running)]
        await until(streams[0], "progress")
        streams.append(stub.Attach(image_pb2.AttachRequest(idempotency_key=name)))
        await until(streams[1], "progress")
        await stub.Cancel(image_pb2.CancelRequest(idempotency_key=name))
        for stream in streams:
            code, reason, _ = await refused(stream)
            assert (code, reason) == (grpc.StatusCode.CANCELLED, "CANCELLED")


async def test_cancels(whole: Cluster) -> None:
    """Each cancelled request ends at its replica too, which would else be busy for minutes."""
    assert await trials.cancels(whole.targets(), 20) == 20
    await trials.until_idle(whole.actors("Replica"))


async def test_a_reader_that_stalls(whole: Cluster) -> None:
    """What is not read is not kept: neither the front nor a replica grows by a quarter of it."""
    found = await trials.stalled(whole, steps=256)
    assert found.unread == 32 * MIB
    assert max(found.front, found.replicas) < found.unread / 4, found


async def test_a_replica_is_killed(whole: Cluster) -> None:
    """All requests end OK though none is tried again by its caller; those under way are drawn again, to the same image,
    and nobody is told twice what was told.
    """
    tally, again = await trials.replica_killed(whole, 30)
    assert (tally.failed, len(tally.statuses)) == ([], 30)
    assert again > 0
    assert tally.repeated == []
    assert tally.difference <= trials.DIFFERENCE_MAX


async def test_replicas_are_replaced(whole: Cluster) -> None:
    """A rolling update of both replicas under load loses nothing."""
    tally, _ = await trials.rolled(whole, 40)
    assert tally.failed == []
    assert len(tally.statuses) >= 40


async def test_a_front_is_killed(whole: Cluster) -> None:
    """Its own streams break and no others; kleinclient has them again at the other front by their keys."""
    broken, other, images = await trials.front_killed(whole, callers=4)
    assert {status.partition(":")[0] for status in broken.failed} == {"UNAVAILABLE"}
    assert other.failed == []
    assert images == 4
