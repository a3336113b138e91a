"""One RPC without its transport: gRPC, gRPC-Web and whatever else carries klein.v1 drive the same calls."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from google.protobuf.message import Message

from kleinserve.core import Caller, Draft
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.desk import Stream
from kleinserve.desk.reception import Asked
from kleinserve.errors import (
    KleinError,
    ReaderStalled,
)
from kleinserve.identity.authenticator import Credentials

FORWARDED_CALLER = "klein-forwarded-caller"  # metadata: the caller for whom a replica calls
_PIECE_BYTES = 64 * 1024  # each of them has the stall limit: a line of 2 KiB/s passes at the default

log = structlog.get_logger()


class ReaderGone(Exception):
    """The caller went away, or gRPC ended the call at its deadline."""


class Transport(Protocol):
    """What carries one RPC. `peer`: its connection. Metadata keys are lower case."""

    @property
    def peer(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def credentials(self) -> Credentials: ...
    def seconds_left(self) -> float | None:
        """Until the RPC's deadline; None: it has none."""
        ...

    async def begin(self, metadata: Mapping[str, str]) -> None:
        """Send the initial metadata."""
        ...

    async def write(self, message: bytes) -> None:
        """Send a message, or wait until there is room for it. Raises: ReaderGone."""
        ...

    async def refuse(self, error: KleinError, request_id: str) -> None:
        """End with the error's status, message and details."""
        ...


@dataclass(eq=False)
class Call:
    """One RPC. `deadline` on the event loop's clock, a margin before the caller's own. `message_bytes`: as it came.

    `passed_to`: the server that answers it, which also counts and records it; "": this one.
    """

    transport: Transport
    request_id: str
    message_bytes: int
    deadline: float | None
    stall_seconds: float
    arrived_microseconds: int
    task: "asyncio.Task[Any]"
    caller: Caller | None = None
    draft: Draft | None = None
    stream: Stream | None = None
    is_complete: bool = False  # nothing is left but for the reader to go
    cause: KleinError | None = None  # why the server itself interrupted it
    passed_to: str = ""
    bundle: Bundle = field(default_factory=Bundle)

    @property
    def known(self) -> Caller:
        assert self.caller is not None, "a call is authenticated before it is served"
        return self.caller

    @property
    def is_forwarded(self) -> bool:
        """Whether a replica has passed it on to this server."""
        return FORWARDED_CALLER in self.transport.metadata

    def asked(self) -> Asked:
        """The call as the desk sees it."""
        turn = self.known.name if self.known.name != "anonymous" else self.transport.peer
        held = self.message_bytes
        return Asked(self.request_id, self.known, turn, self.deadline, held, self.arrived_microseconds, self.bundle)

    async def begin(self) -> None:
        await self.transport.begin({"klein-request-id": self.request_id})

    async def write(self, message: Message) -> None:
        """Send one message. Raises: ReaderStalled when the reader takes nothing of it for too long; ReaderGone."""
        await self.write_bytes(message.SerializeToString())

    async def write_bytes(self, data: bytes) -> None:
        """Send one message, serialized. Raises: as `write`."""
        limit = self.stall_seconds * max(1, math.ceil(len(data) / _PIECE_BYTES))
        try:
            async with asyncio.timeout(limit):
                await self.transport.write(data)
        except TimeoutError:
            raise ReaderStalled(f"{len(data)} bytes were not read in {limit:g} s") from None

    def interrupt(self, error: KleinError) -> None:
        """End it with `error`, also while a write is blocked."""
        self.cause = error
        self.task.cancel()


@dataclass(frozen=True)
class Method:
    """An RPC of the contract. `behaviour` writes its answers to the call; an image RPC's are counted as requests."""

    request: type[Message]
    is_stream: bool
    behaviour: Callable[[Any, Call], Awaitable[None]]
    operation: str = ""  # generate or edit: of requests that are refused before there is a job
    makes_image: bool = False
