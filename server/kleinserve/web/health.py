"""grpc.health.v1 over gRPC-Web: what gRPC's own servicer says on the other port. It needs no caller."""

from typing import Any, NoReturn, Protocol

from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


class Answer(Protocol):
    """Where a health answer is written."""

    async def write(self, message: bytes) -> None: ...
    async def end(self, code: str, message: str = "") -> None: ...


class Health:
    """Drives `servicer`, gRPC's, with a context of its own."""

    def __init__(self, servicer: Any):
        self._methods = {CHECK: servicer.Check, WATCH: servicer.Watch}

    def __contains__(self, path: str) -> bool:
        return path in self._methods

    async def serve(self, path: str, body: bytes, answer: Answer) -> None:
        """Check says how a service is; Watch too, and whenever that changes, until its reader goes."""
        try:
            request = health_pb2.HealthCheckRequest.FromString(body)
            response = await self._methods[path](request, _Context(answer))
            if response is not None:
                await answer.write(response.SerializeToString())
        except DecodeError:
            await answer.end("INTERNAL", "no HealthCheckRequest")
        except _Aborted as aborted:
            await answer.end(*aborted.args)


class _Aborted(Exception):
    """A status code's name, and why."""


class _Context:
    """What gRPC's servicer uses of a gRPC context."""

    def __init__(self, answer: Answer):
        self._answer = answer

    async def write(self, message: Message) -> None:
        await self._answer.write(message.SerializeToString())

    async def abort(self, code: Any, details: str = "") -> NoReturn:
        raise _Aborted(code.name, details)
