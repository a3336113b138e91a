"""What an authenticator promises. Knows no file format and no transport."""

from dataclasses import dataclass, field
from typing import Protocol

from kleinserve.core import ANONYMOUS, Caller
from kleinserve.errors import PermissionDenied


@dataclass(frozen=True)
class Credentials:
    """What a connection and a call say of who calls.

    `authorization`: each value of that header, as it came. `names`: the certificate's alternative names as the callers
    file writes them (`URI:…`, `DNS:…`), of a certificate that the transport has verified; none without one.
    """

    authorization: tuple[str, ...] = field(default=(), repr=False)  # a secret, which no log may show
    names: tuple[str, ...] = ()


class Authenticator(Protocol):
    """Names the caller of a call."""

    def caller(self, credentials: Credentials) -> Caller:
        """Who calls. Raises: Unauthenticated."""
        ...

    def on_behalf(self, credentials: Credentials, name: str) -> Caller:
        """The caller of that name, for whom a replica calls. Raises: Unauthenticated, PermissionDenied."""
        ...

    def replica_token(self) -> str | None:
        """The token to send to other replicas, if they are known by tokens."""
        ...


class Everyone:
    """Without a callers file everyone is `anonymous`, which is a known caller."""

    def caller(self, credentials: Credentials) -> Caller:
        return ANONYMOUS

    def on_behalf(self, credentials: Credentials, name: str) -> Caller:
        """Nobody is known as a replica, and there is nobody else to call for."""
        if name != ANONYMOUS.name:
            raise PermissionDenied("there are no callers here")
        return ANONYMOUS

    def replica_token(self) -> str | None:
        return None
