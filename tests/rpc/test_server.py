"""The gRPC port, without a model behind it. Everything that the server does is in tests/e2e/."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from klein.v1 import image_pb2, image_pb2_grpc
from kleinserve.config import Config
from kleinserve.errors import BadConfig
from kleinserve.identity.authenticator import Everyone
from kleinserve.metrics import Metrics
from kleinserve.rpc.call import Call, Method
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.server import GrpcServer

from tests.e2e.calls import opened

NOBODY: Any = None  # there are no methods that would ask for it


@pytest.fixture
def calls() -> Calls:
    return Calls({}, Everyone(), NOBODY, NOBODY, Config(), Metrics())


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


class Aging:
    """A server whose connections end at one second. Each call tells its connection; a `long` one waits for `done`."""

    def __init__(self, grace_seconds: float):
        self.done = asyncio.Event()
        config = Config(port=0, max_connection_age_seconds=1.0, max_connection_grace_seconds=grace_seconds)

        async def answer(message: image_pb2.GenerateRequest, call: Call) -> None:
            await call.begin()
            await call.write(image_pb2.ImageEvent(request_id=call.transport.peer))
            if message.prompt == "long":
                await self.done.wait()
            call.is_complete = True

        methods = {"/klein.v1.ImageService/Generate": Method(image_pb2.GenerateRequest, True, answer)}
        self.server = GrpcServer(Calls(methods, Everyone(), NOBODY, NOBODY, config, Metrics()), config, None)

    async def moved(self, channel: grpc.aio.Channel) -> "grpc.aio.UnaryStreamCall[Any, Any]":
        """A long call whose connection takes no others any more, since they come by a new one."""
        stub = image_pb2_grpc.ImageServiceStub(channel)
        running = stub.Generate(image_pb2.GenerateRequest(prompt="long"))
        peer = (await running.read()).request_id
        async with asyncio.timeout(30):
            while [event.request_id async for event in stub.Generate(image_pb2.GenerateRequest())] == [peer]:
                pass
        return running


@asynccontextmanager
async def aged(grace_seconds: float) -> AsyncIterator[tuple[Aging, "grpc.aio.UnaryStreamCall[Any, Any]"]]:
    """A server and a call on a connection of its that is past its age."""
    aging = Aging(grace_seconds)
    port = await aging.server.start()
    try:
        async with opened(f"127.0.0.1:{port}") as channel:
            yield aging, await aging.moved(channel)
    finally:
        aging.done.set()
        await aging.server.stop(0)


async def test_an_old_connection_is_told_to_go() -> None:
    """New calls come by a new connection; what ran on the old one ends well, without a grace however long it takes."""
    async with aged(0) as (aging, running):
        aging.done.set()
        assert await running.read() is grpc.aio.EOF
        assert await running.code() is grpc.StatusCode.OK


async def test_an_old_connection_is_cut_after_its_grace() -> None:
    """A stream that the grace does not suffice for is cut."""
    async with aged(0.5) as (_, running), asyncio.timeout(30):
        assert await running.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_taken_port(calls: Calls, taken: int) -> None:
    """It is one line with the address, which the command prints."""
    with pytest.raises(BadConfig, match=f"^cannot listen on 127.0.0.1:{taken}$"):
        await GrpcServer(calls, Config(port=taken), None).start()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
async def test_addresses(calls: Calls, host: str) -> None:
    """Names and addresses of both versions are listened on; until it is said to serve, it does not."""
    config = Config(host=host, port=0)
    server = GrpcServer(calls, config, None)
    port = await server.start()
    async with opened(config.address(port)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for is_serving, status in ((False, "NOT_SERVING"), (True, "SERVING")):
            await server.say(is_serving=is_serving)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="klein.v1.ImageService"))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/klein.v1.ImageService/Draw")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)
