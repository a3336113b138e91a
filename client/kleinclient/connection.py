"""What both clients are made of: where to connect, as whom, with which channel options, and how to try again."""

import inspect
import os
from collections.abc import Awaitable, Mapping
from importlib.metadata import version
from typing import TypedDict

import grpc

from kleinclient.access import Metadata, Pem, Token, bearer, channel_credentials, checked_metadata
from kleinclient.retry import Contact, Retry
from kleinclient.target import DEFAULT_TARGET, address, is_loopback

UNARY_SECONDS = 30.0  # for calls that make no image and have no deadline of their own
KEY_HEADER = "klein-idempotency-key"  # proxies route by it

OPTIONS: dict[str, int | str] = {
    "grpc.primary_user_agent": f"kleinclient/{version('klein-serve')}",
    # 44 MiB is what a server takes by default: 4 references of 10 MiB and the rest. Larger fails here, before the wire.
    "grpc.max_send_message_length": 44 * 1024 * 1024,
    # A dead connection is noticed within half a minute. The server permits one ping in 10 s. What waits for the answer
    # is ping_timeout (60 s by default); keepalive_timeout also is the time after which TCP gives up what nobody takes.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,
    # Bounds one connection attempt too, so that an address that swallows packets is an error after 5 s, not 20.
    "grpc.min_reconnect_backoff_ms": 5_000,
    # gRPC would wait up to 2 minutes between connection attempts, long after the server is back.
    "grpc.max_reconnect_backoff_ms": 5_000,
}

Headers = tuple[tuple[str, str | bytes], ...]


class Settings(TypedDict, total=False):
    """How a client connects; everything may be left out."""

    token: Token | None
    """Sent as `authorization: Bearer TOKEN`; a callable is asked before every attempt. Default: KLEIN_TOKEN; "": none.
    Without TLS it is sent to this machine alone."""
    allow_plaintext_token: bool
    """Send the token without TLS anywhere: for a network that encrypts by itself, such as a service mesh."""
    tls: bool | None
    """True: TLS, trusting the well-known authorities unless `tls_ca` is given. False: plain text. Default: TLS where a
    certificate or KLEIN_TLS_CA is given."""
    tls_ca: Pem | None
    """The authorities that may have signed the server's certificate. Default: KLEIN_TLS_CA."""
    tls_certificate: Pem | None
    """The client's own certificate (with `tls_key`), for servers that ask for one."""
    tls_key: Pem | None
    credentials: grpc.ChannelCredentials | None
    """In place of all of `tls`, for what gRPC can do beyond it."""
    metadata: Metadata
    """Sent with every call."""
    retry: Retry | None
    channel_options: Mapping[str, int | str]
    """gRPC's channel arguments, over the client's own, such as {"grpc.lb_policy_name": "round_robin"}."""


class Connection:
    """The settings of one client, checked, and what it has learnt of its server. Nothing connects here.

    Raises: ValueError, TypeError, OSError for a file that cannot be read.
    """

    def __init__(self, target: str | None, settings: Settings):
        if unknown := settings.keys() - Settings.__annotations__.keys():
            raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
        self.target = address(target or os.environ.get("KLEIN_SERVER") or DEFAULT_TARGET)
        self.credentials = _credentials(settings)
        self.metadata = checked_metadata(settings.get("metadata", ()))
        self.retry = settings.get("retry") or Retry()
        self.contact = Contact(self.retry)
        own = {"grpc.enable_http_proxy": 0} if is_loopback(self.target) else {}
        self.options = list({**OPTIONS, **own, **settings.get("channel_options", {})}.items())
        self._token = self._checked_token(settings)

    def headers(self, key: str = "") -> Headers:
        """The metadata of one attempt. Raises: TypeError for a token that can only be awaited; what the token does."""
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            if inspect.iscoroutine(token):
                token.close()
            raise TypeError("token: an asynchronous callable needs AsyncClient")
        return self._with(token, key)

    async def headers_async(self, key: str = "") -> Headers:
        """As `headers`, where the token may be awaited."""
        token = self._token() if callable(self._token) else self._token
        return self._with(await token if isinstance(token, Awaitable) else token, key)

    def _with(self, token: str | None, key: str) -> Headers:
        return (
            *self.metadata,
            *([] if token is None else [bearer(token)]),
            *([(KEY_HEADER, key)] if key else []),
        )

    def _checked_token(self, settings: Settings) -> Token | None:
        token, has_own = settings.get("token"), any(key == "authorization" for key, _ in self.metadata)
        if token and has_own:
            raise ValueError("token: the metadata has an authorization already")
        if token is None and not has_own:
            token = os.environ.get("KLEIN_TOKEN")
        if not token:
            return None
        if isinstance(token, str):
            bearer(token)
        if not (self.credentials or is_loopback(self.target) or settings.get("allow_plaintext_token")):
            raise ValueError(
                f"token: it is not sent to {self.target} without TLS, where anyone on the way could read it"
            )
        return token


def _credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    tls = (settings.get("tls"), settings.get("tls_ca"), settings.get("tls_certificate"), settings.get("tls_key"))
    if (given := settings.get("credentials")) is None:
        return channel_credentials(*tls)
    if any(tls):
        raise ValueError("credentials: given beside tls")
    return given
