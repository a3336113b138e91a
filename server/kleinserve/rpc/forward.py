"""Passes a call on to the server that owns its key, as contract.md's *More machines* says. Owns grpc.

The owner alone counts, charges and records it; here it is a line in the log.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from grpc_status import rpc_status

from kleinserve.errors import DeadlinePassed, Internal, KeyElsewhere, LedgerUnavailable
from kleinserve.identity.authenticator import Authenticator
from kleinserve.identity.certificates import Certificates
from kleinserve.rpc.call import FORWARDED_CALLER, Call
from kleinserve.rpc.status import Answered

T = TypeVar("T")
PASSED_ON = ("klein-idempotency-key", "traceparent", "tracestate", "x-request-id")
PAUSE_SECONDS = 0.5  # between two tries of a key whose owner does not answer
RETRY_SECONDS = 1.0
# It was not reached, or went away before it said anything. The key makes a second try safe.
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # no waiting for a backoff that an earlier call began
    ("grpc.min_reconnect_backoff_ms", 1000),  # bounds a connection attempt: a paused server's kernel still accepts
    ("grpc.keepalive_time_ms", 15_000),  # the other server permits one ping in 10 s
    ("grpc.keepalive_timeout_ms", 5_000),
)

log = structlog.get_logger()


class Trust(NamedTuple):
    """How a connection to another server is made. `name`: what a certificate is checked for at an address."""

    credentials: grpc.ChannelCredentials
    name: str


def channel_credentials(own: Certificates, ca: bytes | None) -> Trust:
    """Of a connection to another server: its certificate is checked by `ca`, None: by the system's.

    Where clients need a certificate this server shows its own. No certificate lists the addresses of pods: one that is
    dialled by address is to have this server's own name, as where all have one certificate.
    """
    if own.client_ca is None:
        return Trust(grpc.ssl_channel_credentials(ca), own.name)
    return Trust(grpc.ssl_channel_credentials(ca, own.key, own.chain), own.name)


class Forward:
    """`credentials` says those of a connection to another server; None: plain text.

    `patience_seconds`: how long to try where the owner is said to live and does not answer.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        credentials: Callable[[], Trust | None],
        patience_seconds: float,
    ):
        self._authenticator, self._credentials, self._patience = authenticator, credentials, patience_seconds

    async def unless_elsewhere(self, message: Message, call: Call, here: Callable[[], Awaitable[T]]) -> T | None:
        """What `here` returns; None: the key is another server's, and the call has its answer.

        An owner that does not answer is asked again until its ownership lapses: then the key can be claimed here.
        Raises: KeyElsewhere, where that does not help; what `here` raises; Answered, what the owner did.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            try:
                return await here()
            except KeyElsewhere as elsewhere:
                if call.is_forwarded or not elsewhere.address:
                    raise
                if await self._is_answered(elsewhere.address, message, call):
                    return None
                if loop.time() >= until:
                    raise
            left = PAUSE_SECONDS if call.deadline is None else call.deadline - loop.time()
            if left <= 0:
                raise DeadlinePassed("the deadline passed while the key's server did not answer")
            await asyncio.sleep(min(PAUSE_SECONDS, left))

    async def _is_answered(self, address: str, message: Message, call: Call) -> bool:
        """Whether the server there answered; its messages are the call's. Raises: Answered, its refusal."""
        path = f"/klein.v1.ImageService/{message.DESCRIPTOR.name.removesuffix('Request')}"
        async with self._channel(address) as channel:
            ask: Any = channel.unary_stream(path)  # of bytes
            answer = ask(
                message.SerializeToString(), timeout=call.transport.seconds_left(), metadata=self._metadata(call)
            )
            try:
                await _pass_on(answer, address, call)
            except grpc.aio.AioRpcError as error:
                return _judge(error, address, call)
            finally:
                answer.cancel()  # where the reader here has gone; else nothing
        return True

    def _channel(self, address: str) -> grpc.aio.Channel:
        """One for each call: no certificate and no connection outlives its use, and such calls are rare."""
        trust = self._credentials()
        if trust is None:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        options: tuple[tuple[str, int | str], ...] = _OPTIONS
        if trust.name and _is_number(address):
            options = (*_OPTIONS, ("grpc.ssl_target_name_override", trust.name))
        return grpc.aio.secure_channel(address, trust.credentials, options=options)

    def _metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        given = call.transport.metadata
        sent = [(name, given[name]) for name in PASSED_ON if name in given]
        token = self._authenticator.replica_token()
        if token is not None:
            sent.append(("authorization", f"Bearer {token}"))
        return (*sent, (FORWARDED_CALLER, call.known.name))


def _is_number(address: str) -> bool:
    """Whether the host of HOST:PORT is an address, not a name."""
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


async def _pass_on(answer: Any, address: str, call: Call) -> None:
    """Write its messages to the call. Raises: AioRpcError, as it ended; ReaderGone, ReaderStalled."""
    while (data := await answer.read()) is not grpc.aio.EOF:
        if not call.passed_to:
            call.passed_to = address
            call.request_id = _request_id(await answer.initial_metadata(), call)
            call.bundle.leave_out()
            await call.begin()
        await call.write_bytes(data)
    call.is_complete = True


def _judge(error: grpc.aio.AioRpcError, address: str, call: Call) -> bool:
    """False: nobody answered there, and the key may be tried again. Raises: what the call ends with."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # a status that contradicts its details is no klein server's
        status = None
    code = error.code()
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):  # us, not the caller
        log.error("another server does not take this one for a replica", address=address, said=error.details())
        raise KeyElsewhere(address)
    if status is not None:
        call.passed_to = address
        call.request_id = _request_id(error.trailing_metadata(), call)
        raise Answered(status)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise DeadlinePassed("the deadline passed")
    if call.passed_to:
        raise LedgerUnavailable("the key's server went away", retry_seconds=RETRY_SECONDS)
    log.warning("the key's server does not answer", address=address, code=code.name, said=error.details())
    if code not in _GONE:
        raise Internal(f"internal error, request {call.request_id}")
    return False


def _request_id(metadata: Any, call: Call) -> str:
    """The owner's, by which its log knows the call."""
    return str(dict(metadata or ()).get("klein-request-id", call.request_id))
