"""The server's ports, without a model behind them."""

import socket
from collections.abc import Iterator

import grpc
import pytest
from kleinserve.config import Config
from kleinserve.metrics import Metrics
from kleinserve.rpc import server
from kleinserve.scheduler.scheduler import State


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


async def test_taken_grpc_port(taken: int) -> None:
    """A gRPC port that is taken is an OSError, which the command prints in one line, with the address."""
    with pytest.raises(OSError, match=f"^cannot listen on 127.0.0.1:{taken}$"):
        await server._bound(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Config(port=taken))


def test_taken_metrics_port(taken: int) -> None:
    """A metrics port that is taken is an OSError with the address, too."""
    with pytest.raises(OSError, match=f"^cannot listen on 127.0.0.1:{taken}: Address already in use$"):
        server._WebServer(Config(metrics_port=taken), Metrics(), lambda: State.READY)
