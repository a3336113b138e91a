"""What the web port answers, by path: gRPC-Web by gRPC's paths, OpenAI's Images API, the playground."""

from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from kleinserve.config import Config
from kleinserve.core import ModelFacts
from kleinserve.rpc.calls import Calls
from kleinserve.web import playground
from kleinserve.web.grpcweb import GrpcWeb
from kleinserve.web.health import Health
from kleinserve.web.http import Gate, Served
from kleinserve.web.openai import endpoints as openai


def application(calls: Calls, health: Any, facts: ModelFacts, config: Config) -> ASGIApp:
    """The web port's ASGI application. `health`: gRPC's own servicer."""
    grpc_web = Served(GrpcWeb(calls, Health(health)))
    routes = [*openai.routes(calls, facts.name), *playground.routes()]
    routes.append(Route("/{service}/{method}", grpc_web, methods=["POST"]))
    return Gate(Starlette(routes=routes), config.web_origins, config.host, knows_callers=config.callers is not None)
