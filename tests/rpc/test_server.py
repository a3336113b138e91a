"""The gRPC port, without a model behind it. Everything that the server does is in tests/e2e/."""

import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kleinserve.config import Config
from kleinserve.errors import BadConfig
from kleinserve.identity.authenticator import Everyone
from kleinserve.metrics import Metrics
from kleinserve.rpc.call import Calls
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
