"""What a caller sees when the model or the accelerator fails, and what the callers beside it see: nothing."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import edit, final, generate, opened, png, refused, until
from tests.e2e.conftest import Serving
from tests.e2e.faults import FAILS, SECRET, UNFINISHED, UNTILED

LONG = 150  # steps: a second and more of three together
LARGE = (256, 256)  # 256 tokens: by itself more than the 200 that `faulty` has memory for


@pytest.fixture
async def channel(faulty: Serving) -> AsyncIterator[grpc.aio.Channel]:
    async with opened(faulty.target) as channel:
        yield channel


def asked(prompt: str, **options: object) -> image_pb2.GenerateRequest:
    request = generate(**options)
    request.prompt = prompt
    return request


async def test_out_of_memory_alone(faulty: Serving, channel: grpc.aio.Channel) -> None:
    """A request that does not fit even alone is told so and when to retry; those that shared its step are unharmed."""
    failed = 'klein_requests_total{code="RESOURCE_EXHAUSTED",operation="generate",reason="ACCELERATOR_OUT_OF_MEMORY"}'
    before = faulty.counted(failed)
    stub = image_pb2_grpc.ImageServiceStub(channel)
    requests = [generate(i, (64, 64), LONG, priority="PRIORITY_INTERACTIVE") for i in range(3)]  # all start at once
    beside = [asyncio.create_task(final(channel, request)) for request in requests]
    await faulty.counts("klein_running_requests", 3)
    code, reason, details = await refused(stub.Generate(generate(0, LARGE)))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ACCELERATOR_OUT_OF_MEMORY")
    assert set(details) == {"ErrorInfo", "RetryInfo"}
    retry = details["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToSeconds() >= 1
    for request, (picture, completed) in zip(requests, await asyncio.gather(*beside), strict=True):
        assert completed.max_step_requests >= 2
        alone, _ = await final(channel, request)
        assert np.abs(picture - alone).max() <= 2
    assert faulty.counted("klein_running_requests") == 0
    assert faulty.counted(failed) == before + 1


async def test_out_of_memory_together(channel: grpc.aio.Channel) -> None:
    """Requests that fit one by one but not together all succeed, each what it is alone."""
    size = (128, 128)  # 64 tokens each, 256 together
    pictures = await asyncio.gather(*(final(channel, generate(i, size, 10)) for i in range(4)))
    assert max(completed.max_step_requests for _, completed in pictures) in (2, 3)  # four never stepped together
    for i, (picture, _) in enumerate(pictures):
        alone, _ = await final(channel, generate(i, size, 10))
        assert np.abs(picture - alone).max() <= 2


async def test_out_of_memory_in_decode(channel: grpc.aio.Channel) -> None:
    """A picture that cannot be decoded whole is decoded in tiles, and nobody is told."""
    picture, _ = await final(channel, asked(UNTILED, size=(128, 128)))
    assert picture.shape == (128, 128, 4)


@pytest.mark.parametrize("prompt", [FAILS, UNFINISHED])
async def test_internal(channel: grpc.aio.Channel, prompt: str) -> None:
    """A failure of ours names the request and nothing of the server's insides, and hits that request only."""
    stub = image_pb2_grpc.ImageServiceStub(channel)
    beside = asyncio.create_task(final(channel, edit([png()], 1, width=64, height=64, steps=10)))
    call = stub.Generate(asked(prompt))
    request_id = (await until(call, "accepted")).request_id
    code, reason, details = await refused(call)
    assert (code, reason, set(details)) == (grpc.StatusCode.INTERNAL, "INTERNAL", {"ErrorInfo"})
    info, message = details["ErrorInfo"], await call.details()
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"request_id": request_id}
    assert request_id in message
    assert SECRET not in str(details) + message
    assert dict(await call.trailing_metadata())["klein-request-id"] == request_id
    await beside
