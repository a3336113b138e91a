"""What an authenticator promises. Knows no file format and no transport."""

from dataclasses import dataclass, field
from typing import Protocol

from kleinserve.core import ANONYMOUS, Caller


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


class Everyone:
    """Without a callers file everyone is `anonymous`, which is a known caller."""

    def caller(self, credentials: Credentials) -> Caller:
        return ANONYMOUS
