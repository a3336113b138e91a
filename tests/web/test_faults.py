"""Refusals that only a server in trouble gives, on both ports: tests/e2e/faults.py with a web port."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from google.protobuf.message import Message
from klein.v1 import image_pb2, usage_pb2

from tests.e2e.calls import generate
from tests.e2e.conftest import ENDLESS, launched
from tests.e2e.faults import FAILS
from tests.web.answers import Answer, asked, opened, over_grpc, over_web
from tests.web.conftest import Web, web_served

IMAGES, USAGE = "/klein.v1.ImageService/", "/klein.v1.UsageService/"
LONG = generate(steps=ENDLESS)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A server with little memory, one place to wait, one request a step, nothing kept, no ledger, and faults."""
    settings = {
        "FAULTS_IMAGE_TOKENS_MAX": "200",
        "KLEINSERVE_QUEUE_REQUESTS_MAX": "1",
        "KLEINSERVE_STEP_TOKENS_MAX": "1",
        "KLEINSERVE_KEPT_BYTES_MAX": "0",
        "KLEINSERVE_LEDGER": "none",
        "KLEINSERVE_MAX_STEPS": str(ENDLESS),
    }
    with web_served(tmp_path_factory.mktemp("troubled"), module="tests.e2e.faults", **settings) as server:
        yield server


async def both(web: Web, path: str, message: Message, **metadata: str) -> tuple[Answer, Answer]:
    there = await over_grpc(web.target, path, message, **metadata)
    return there, await over_web(web.base, path, message, **metadata)


def kinds(answer: Answer) -> tuple[object, ...]:
    """What does not change from one moment to the next."""
    assert answer.status is not None
    return answer.code, answer.reason, [packed.type_url for packed in answer.status.details]


@asynccontextmanager
async def running(web: Web) -> AsyncIterator[None]:
    """While a request runs that does not end by itself."""
    async with opened(web.base) as client, asked(client, IMAGES + "Generate", LONG) as (_, messages):
        while image_pb2.ImageEvent.FromString(await anext(messages)).WhichOneof("event") != "progress":
            pass
        yield


async def test_failures_are_told_alike(troubled: Web) -> None:
    """A failure of the engine, and too little memory, have one answer on both ports, and nothing of the insides."""
    message = generate()
    message.prompt = FAILS
    for asked_for, reason in ((message, "INTERNAL"), (generate(size=(256, 256)), "ACCELERATOR_OUT_OF_MEMORY")):
        there, here = await both(troubled, IMAGES + "Generate", asked_for)
        assert here.reason == reason
        assert kinds(here) == kinds(there)
        assert "/insides" not in str(here.status)


async def test_what_is_gone_is_told_alike(troubled: Web) -> None:
    """RESULT_GONE has the recorded usage on both ports."""
    message = generate(seed=1, idempotency_key="gone")
    assert (await over_web(troubled.base, IMAGES + "Generate", message)).code == "OK"
    there, here = await both(troubled, IMAGES + "Generate", message)
    assert here.reason == "RESULT_GONE"
    assert kinds(here) == kinds(there)
    assert here.message == there.message


async def test_no_ledger_is_told_alike(troubled: Web) -> None:
    """Without a ledger usage is NOT_IMPLEMENTED on both ports."""
    message = usage_pb2.GetUsageRequest()
    message.start_time.FromSeconds(1)
    message.end_time.FromSeconds(2)
    there, here = await both(troubled, USAGE + "GetUsage", message)
    assert here.reason == "NOT_IMPLEMENTED"
    assert kinds(here) == kinds(there)


async def test_a_full_queue_is_told_alike(troubled: Web) -> None:
    """With one request running and one waiting, QUEUE_FULL on both ports; OpenAI's form is 429 with a delay."""
    async with (
        running(troubled),
        opened(troubled.base) as client,
        asked(client, IMAGES + "Generate", LONG) as (_, messages),
    ):
        await anext(messages)
        there, here = await both(troubled, IMAGES + "Generate", generate())
        told = await client.post("/v1/images/generations", json={"prompt": "a red circle", "n": 3})
    assert here.reason == "QUEUE_FULL"
    assert kinds(here) == kinds(there)
    assert (told.status_code, told.json()["error"]["code"]) == (429, "QUEUE_FULL")
    assert told.headers["x-should-retry"] == "true"
    assert int(told.headers["retry-after"]) >= 1


async def test_a_deadline_that_cannot_be_met_is_told_alike(troubled: Web) -> None:
    """DEADLINE_UNREACHABLE, at admission, on both ports; OpenAI's form is 504."""
    there = await over_grpc(troubled.target, IMAGES + "Generate", LONG, timeout_seconds=3)
    here = await over_web(troubled.base, IMAGES + "Generate", LONG, grpc_timeout="3S")
    async with opened(troubled.base) as client:
        asked_for = {"prompt": "a red circle", "steps": ENDLESS}
        told = await client.post("/v1/images/generations", json=asked_for, headers={"grpc-timeout": "3S"})
    assert (here.code, here.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE")
    assert kinds(here) == kinds(there)
    assert (told.status_code, told.json()["error"]["code"]) == (504, "DEADLINE_UNREACHABLE")


async def test_not_ready_and_draining(tmp_path: Path) -> None:
    """Both ports are bound before the warm-up and say NOT_READY; while a stream is waited for the web says DRAINING."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        grpc_port, web_port = one.getsockname()[1], two.getsockname()[1]
    target, base, warm = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{web_port}", tmp_path / "warm"
    settings = {
        "FAULTS_WARM_UP_FILE": str(warm),
        "KLEINSERVE_LEDGER": "none",
        "KLEINSERVE_MAX_STEPS": str(ENDLESS),
        "KLEINSERVE_DRAIN_GRACE_SECONDS": "3",
    }
    arguments = ("--port", str(grpc_port), "--web-port", str(web_port))
    with launched(*arguments, module="tests.e2e.faults", **settings) as process:
        await _listens(base)
        web = Web(target, "", process, base=base)
        there, here = await both(web, IMAGES + "Generate", generate())
        assert here.reason == "NOT_READY"
        assert kinds(here) == kinds(there)
        warm.touch()
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        async with opened(base) as client, asked(client, IMAGES + "Generate", LONG) as (answer, messages):
            await anext(messages)
            process.terminate()
            async for message in messages:
                if not answer.messages or answer.messages[-1] != b"DRAINING":
                    late = await over_web(base, IMAGES + "Generate", generate())
                    answer.messages.append(late.reason.encode())
                assert message
        assert b"DRAINING" in answer.messages
        assert answer.reason == "DRAINING"
        assert await asyncio.to_thread(process.wait, 60) == 0


async def _listens(base: str) -> None:
    async with asyncio.timeout(120), opened(base) as client:
        while True:
            try:
                await client.get("/")
            except httpx.TransportError:
                await asyncio.sleep(0.1)
            else:
                return
