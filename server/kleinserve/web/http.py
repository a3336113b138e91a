"""What a web request says of itself: headers, who calls, and where it comes from. Knows no endpoint."""

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from kleinserve.identity.authenticator import Credentials

NAMES = "kleinserve.names"  # where the server puts a verified certificate's names in a request's state
ALLOWED_HEADERS = (
    "authorization content-type grpc-timeout idempotency-key klein-idempotency-key traceparent x-grpc-web x-user-agent"
)
EXPOSED_HEADERS = (
    *("grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms"),
    *("klein-request-id", "retry-after", "x-should-retry"),
)
LOCAL = ("localhost", "127.0.0.1", "::1")


def header_map(scope: Scope) -> Mapping[str, str]:
    """Its headers by lower-case name; of several of one name the last."""
    return {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}


def credentials(scope: Scope) -> Credentials:
    """What the connection and the request say of who calls."""
    tokens = tuple(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"authorization")
    return Credentials(tokens, scope.get("state", {}).get(NAMES, ()))


class Gate:
    """Lets in what comes from the page's own origin or a listed one, and answers the listed ones' preflights.

    Another `Origin` is 403 before any work. Where everyone is anonymous a page of a stranger could still reach us by a
    name that it points here: a `Host` that is neither ours, localhost nor listed is 421.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str], host: str, knows_callers: Callable[[], bool]):
        self._origins, self._host, self._knows_callers = frozenset(origins), host, knows_callers
        self._app = CORSMiddleware(
            app,
            allow_origins=list(self._origins),
            allow_methods=["GET", "POST"],
            allow_headers=ALLOWED_HEADERS.split(),
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = header_map(scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        own = f"{scope['scheme']}://{host}"
        if not self._knows_callers() and not self._is_ours(host):
            await PlainTextResponse("this host is not served here\n", 421)(scope, receive, send)
        elif origin is not None and origin != own and origin not in self._origins:
            await PlainTextResponse("this origin may not call here\n", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        listed = {urlsplit(origin).hostname for origin in self._origins}
        return name in LOCAL or name == self._host.strip("[]") or name in listed
