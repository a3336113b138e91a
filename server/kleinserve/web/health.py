"""grpc.health.v1 over gRPC-Web: what gRPC's own servicer answers on the other port. It needs no caller."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
PATHS = (CHECK, WATCH)


class Servicer(Protocol):
    """gRPC's health servicer, with messages as bytes."""

    def ...
