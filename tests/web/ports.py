"""The gRPC port and the web port in this process, over the same calls, whose methods a test says."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from klein.v1 import image_pb2
from kleinserve.config import Config
from kleinserve.core import ModelFacts, Size, Variant
from kleinserve.identity.authenticator import Authenticator, Everyone
from kleinserve.metrics import Metrics
from kleinserve.rpc.call import Method
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.server import GrpcServer
from kleinserve.web.app import application
from kleinserve.web.server import WebServer

from tests.desk.stage import Stage

GENERATE, EDIT = "/klein.v1.ImageService/Generate", "/klein.v1.ImageService/Edit"
FACTS = ModelFacts("mini", Variant.DISTILLED, Size(256, 256), 4, 1.0, 64, 32, True, "cpu", "float32")


@dataclass(frozen=True)
class Ports:
    """Both ports: a target, a base address, and what stands behind them."""

    grpc: str
    web: str
    calls: Calls
    server: GrpcServer


@asynccontextmanager
async def ports(
    behaviour: Any,
    authenticator: Authenticator | None = None,
    tls: ssl.SSLContext | None = None,
    stage: Stage | None = None,
    **settings: Any,
) -> AsyncIterator[Ports]:
    """Generate, and Edit, behave as said: `behaviour(message, call)`; its streams are those of the stage's desk."""
    config = Config(**{"port": 0, "web_port": 0, "metrics_port": 0} | settings)
    methods: Mapping[str, Method] = {
        GENERATE: Method(image_pb2.GenerateRequest, True, behaviour),
        EDIT: Method(image_pb2.EditRequest, True, behaviour),
    }
    nothing: Any = None  # without a stage no call opens a stream or has a draft
    desk, books, metrics = (stage.desk, stage.books, stage.metrics) if stage else (nothing, nothing, Metrics())
    calls = Calls(methods, authenticator or Everyone(), desk, books, config, metrics)
    grpc_server = GrpcServer(calls, config, None)
    web_server = WebServer(application(calls, grpc_server.health, FACTS, config), config, tls)
    grpc_port, web_port = await grpc_server.start(), await web_server.start()
    await grpc_server.say(is_serving=True)
    scheme = "http" if tls is None else "https"
    try:
        yield Ports(f"127.0.0.1:{grpc_port}", f"{scheme}://localhost:{web_port}", calls, grpc_server)
    finally:
        await asyncio.gather(grpc_server.stop(0.1), web_server.stop(0.1))
