"""Deadlines as callers see them: refused at once where they cannot be met, ended where they pass."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import NARROW, generate, opened, refused, until
from tests.e2e.conftest import ENDLESS, Serving, served


async def test_a_deadline_that_no_server_could_meet_is_refused_at_once(serving: Serving) -> None:
    """Fifty steps of 2048² in ten seconds: DEADLINE_UNREACHABLE, and nothing was computed."""
    steps = serving.counted("klein_step_requests_count")
    async with opened(serving.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        code, reason, _ = await refused(stub.Generate(generate(size=(2048, 2048), steps=50), timeout=10))
    assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
    assert serving.counted('klein_deadline_total{outcome="refused"}') >= 1
    assert serving.counted("klein_step_requests_count") == steps


async def test_a_deadline_that_this_queue_cannot_meet_says_when_to_come_back(serving: Serving) -> None:
    """Requests whose own deadlines leave no room: RESOURCE_EXHAUSTED with a RetryInfo; those admitted go on."""
    async with opened(serving.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        calls = [stub.Generate(generate(seed, (256, 256), 50), timeout=30) for seed in range(60)]
        await asyncio.gather(*(call.initial_metadata() for call in calls))
        code, reason, details = await refused(next(call for call in calls if call.done()))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE")
        retry = details["RetryInfo"]
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToTimedelta().total_seconds() >= 1
        admitted = [call for call in calls if not call.done()]
        assert admitted
        for call in admitted:
            call.cancel()


async def test_a_deadline_that_can_be_met_is_met(serving: Serving) -> None:
    """A generous deadline changes nothing, and is counted as met."""
    async with opened(serving.target) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(), timeout=60)
        assert [event async for event in call][-1].HasField("completed")
    assert serving.counted('klein_deadline_total{outcome="met"}') >= 1


async def test_a_deadline_that_passes_while_nobody_reads_is_missed(serving: Serving) -> None:
    """A write that waits for the reader until the deadline is no cancellation."""
    missed, cancelled = 'klein_deadline_total{outcome="missed"}', "klein_cancelled_total"
    before, others = serving.counted(missed), serving.counted(cancelled)
    async with opened(serving.target, *NARROW) as narrow:
        raw = image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")  # a megabyte, the window is 16 KiB
        call = image_pb2_grpc.ImageServiceStub(narrow).Generate(generate(0, (512, 512), 1, output=raw), timeout=5)
        await until(call, "image_header")
        await serving.counts(missed, before + 1)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert serving.counted(cancelled) == others


async def test_a_deadline_that_passes_ends_the_stream_before_the_caller_s_own_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing is refused by prediction, DEADLINE_PASSED arrives, and the requests beside it are not disturbed."""
    monkeypatch.setenv("KLEINSERVE_DEADLINE_ADMISSION", "false")
    monkeypatch.setenv("KLEINSERVE_DEADLINE_MARGIN_SECONDS", "0.5")  # the caller's timer runs on a busy machine too
    monkeypatch.setenv("KLEINSERVE_MAX_STEPS", str(ENDLESS))
    with served() as serving:
        async with opened(serving.target) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            late = refused(stub.Generate(generate(size=(256, 256), steps=ENDLESS), timeout=5))
            beside = stub.Generate(generate(1))
            (code, reason, _), _ = await asyncio.gather(late, beside.wait_for_connection())
            assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
            assert [event async for event in beside][-1].HasField("completed")
        assert serving.counted('klein_deadline_total{outcome="missed"}') == 1
