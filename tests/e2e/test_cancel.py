"""Callers that go away: in the queue, in a step, while the image is delivered."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
from klein.v1 import image_pb2, image_pb2_grpc

from tests.e2e.calls import NARROW, NONE, final, generate, opened, until
from tests.e2e.conftest import ENDLESS, Serving, served

CANCELLED = 'klein_requests_total{code="CANCELLED",operation="generate",reason="CANCELLED"}'
CALLER = """
import sys, grpc
from klein.v1 import image_pb2, image_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
request = image_pb2.GenerateRequest.FromString(bytes.fromhex(sys.argv[2]))
for event in image_pb2_grpc.ImageServiceStub(channel).Generate(request):
    print(event.WhichOneof("event"), flush=True)
"""


@pytest.fixture
async def stub(single: Serving) -> AsyncIterator[image_pb2_grpc.ImageServiceStub]:
    async with opened(single.target) as channel:
        yield image_pb2_grpc.ImageServiceStub(channel)


def where(name: str) -> str:
    return f'klein_cancelled_total{{where="{name}"}}'


async def test_in_the_queue_and_in_a_step(single: Serving, stub: image_pb2_grpc.ImageServiceStub) -> None:
    """A cancelled request leaves the queue at once, a running one at the next step; those behind it move up."""
    names = [where("queue"), where("step"), CANCELLED, "klein_cost_microusd_total"]
    before = [single.counted(name) for name in names]

    def more() -> list[float]:
        return [single.counted(name) - base for name, base in zip(names, before, strict=True)]

    running = stub.Generate(generate(0, (256, 256), ENDLESS))
    await until(running, "progress")
    first = stub.Generate(generate(1, (128, 128), priority="PRIORITY_BATCH"))
    assert (await until(first, "queued")).queued.position == 0
    second = stub.Generate(generate(2, (128, 128), priority="PRIORITY_BATCH"))
    assert (await until(second, "queued")).queued.position == 1
    assert single.counted('klein_queue_depth{priority="batch"}') == 2
    first.cancel()
    assert (await until(second, "queued")).queued.position == 0
    assert single.counted('klein_queue_depth{priority="batch"}') == 1
    assert more() == [1, 0, 1, 0]
    running.cancel()
    assert (await until(second, "started")).started.queue_wait.ToMilliseconds() > 0
    assert more()[:3] == [1, 1, 2]
    await until(second, "completed")
    assert await running.code() is await first.code() is grpc.StatusCode.CANCELLED
    await single.counts("klein_running_requests", 0)
    assert more() == [1, 1, 2, 14_000]


async def test_vanished(single: Serving) -> None:
    """A caller whose connection closes without a word is a cancelled one."""
    before = single.counted(where("step"))
    async with opened(single.target, ("grpc.use_local_subchannel_pool", 1)) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(0, (256, 256), ENDLESS))
        await until(call, "progress")
    await single.counts(where("step"), before + 1)
    await single.counts("klein_running_requests", 0)


async def test_stopped() -> None:
    """A caller that hangs, its connection open, is noticed by pings that it does not answer, long before a stall."""
    settings = {"KEEPALIVE_SECONDS": "1", "KEEPALIVE_TIMEOUT_SECONDS": "1", "MAX_STEPS": str(ENDLESS)}
    request = generate(0, (256, 256), ENDLESS).SerializeToString().hex()
    with served(**{f"KLEINSERVE_{name}": value for name, value in settings.items()}) as server:
        command = (sys.executable, "-c", CALLER, server.target, request)
        caller = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            assert caller.stdout is not None
            while await caller.stdout.readline() != b"progress\n":
                pass
            assert server.counted("klein_running_requests") == 1
            caller.send_signal(signal.SIGSTOP)
            await server.counts("klein_running_requests", 0)
        finally:
            caller.kill()
            await caller.wait()
        assert server.counted(where("step")) == 1


async def test_in_delivery(faulty: Serving) -> None:
    """Who leaves while the image is delivered counts as cancelled, and is billed: it was written down before."""
    before, paid = faulty.counted(where("delivery")), faulty.counted("klein_cost_microusd_total")
    async with opened(faulty.target, *NARROW) as channel:
        output = image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")
        request = generate(0, (208, 224), 1, output=output, preview=NONE)
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(request)
        await until(call, "image_header")
        assert faulty.counted("klein_cost_microusd_total") == paid + 14_000
        call.cancel()
        await faulty.counts(where("delivery"), before + 1)
        await final(channel, generate())
    assert faulty.counted(where("delivery")) == before + 1
    assert faulty.counted("klein_cost_microusd_total") == paid + 28_000


async def test_after_completed(single: Serving, stub: image_pb2_grpc.ImageServiceStub) -> None:
    """Who goes away with the whole answer was served: nobody is counted as cancelled who has paid."""
    delivered = 'klein_requests_total{code="OK",operation="generate",reason=""}'
    before, cancelled = single.counted(delivered), single.counted(CANCELLED)
    for seed in range(30):
        call = stub.Generate(generate(seed, steps=1, preview=NONE))
        await until(call, "completed")
        call.cancel()
    await single.counts(delivered, before + 30)
    assert single.counted(CANCELLED) == cancelled
