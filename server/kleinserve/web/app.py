"""What the web port answers, by path: gRPC-Web by gRPC's paths, OpenAI's Images API, the playground."""

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from kleinserve.config import Config
from kleinserve.rpc.call import Calls
from kleinserve.web import openai, playground
from kleinserve.web.grpcweb import GrpcWeb
from kleinserve.web.http import Gate


def application(calls: Calls, config: Config) -> ASGIApp:
    """The web port's ASGI application."""
    grpc_web = GrpcWeb(calls)
    routes: list[BaseRoute] = [Route(path, grpc_web, methods=["POST"]) for path in calls.methods]
    routes += openai.routes(calls)
    routes += playground.routes()
    return Gate(Starlette(routes=routes), config.web_origins, config.host, lambda: config.callers is not None)
