"""Every way a request can fail, as a caller catches it. Knows nothing of gRPC; answer.py reads these off the wire.

KleinError
  InvalidField              a field is outside its range; `violations` names each
    RefusedReference        ReferenceUnreadable, ReferenceUnsupported, ReferenceTooLarge
  RequestTooLarge           more bytes than gRPC takes here or there
  Unavailable               not now
    NotReady, Draining      warming up; going down
    LedgerUnavailable       what is used cannot be written down, so nothing is delivered
    ServerUnreachable       nothing answers there
    ConnectionLost          something answered, and then the connection broke
  Busy                      the server has no room; `retry_after` says when it may
    QueueFull, QuotaExceeded, AcceleratorOutOfMemory
  DeadlineExceeded          `timeout` passed
    DeadlineUnreachable     refused at once: it would pass
    DeadlinePassed          it passed at the server
  Cancelled, ReaderStalled, AlphaUnavailable, ResultGone, IdempotencyKeyReused, UnknownKey,
  Unauthenticated, PermissionDenied, NotImplementedByServer, ServerError
  BrokenStream              an answer that cannot be true: wrong hash, wrong offset, no image
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One bad field: its path in the request's proto names, and what is wrong. Of a quota: whose, and which limit."""

    field: str
    description: str


class KleinError(Exception):
    """A request that did not bring its image.

    `status`: gRPC's name for it. `reason`: the contract's, "" where gRPC itself refused. `retry_after`: seconds after
    which trying again can help, None where it cannot. `request_id`: what to tell the operator, "" if never assigned.
    `metadata`: what the server said besides, by name.
    """

    def __init__(
        self,
        message: str,
        *,
        status: str = "UNKNOWN",
        reason: str = "",
        retry_after: float | None = None,
        violations: tuple[Violation, ...] = (),
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.violations = violations
        self.request_id = request_id
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[object, ...]:
        """As a value: errors travel between processes."""
        return _remade, (type(self), self.__dict__)

    def __str__(self) -> str:
        again = f", try again in {self.retry_after:g} s" if self.retry_after is not None else ""
        return f"{self.message} ({self.reason or self.status}{again})"


def _remade(kind: type[KleinError], facts: dict[str, object]) -> KleinError:
    error = kind.__new__(kind, facts["message"])
    error.__dict__.update(facts)
    return error


class InvalidField(KleinError):
    """One or more fields are outside their range; all of them in one answer."""


class RefusedReference(InvalidField):
    """A reference cannot be used; `violations` names it by its place."""


class ReferenceUnreadable(RefusedReference):
    """It is empty, truncated, or no image that the server reads."""


class ReferenceUnsupported(RefusedReference):
    """It is animated, too small, too long, or takes too much to decode."""


class ReferenceTooLarge(RefusedReference):
    """It has too many bytes or pixels."""


class RequestTooLarge(KleinError):
    """The request has more bytes than gRPC sends here or takes there; nothing of it was done."""


class Unavailable(KleinError):
    """The server cannot take requests now."""


class NotReady(Unavailable):
    """The server has not finished its warm-up."""


class Draining(Unavailable):
    """The server is going down and takes no new requests."""


class LedgerUnavailable(Unavailable):
    """What is used cannot be written down now; what cannot be written down is not delivered."""


class ServerUnreachable(Unavailable):
    """Nothing answers at the address."""


class ConnectionLost(Unavailable):
    """The connection broke, or something between here and the server ended the call."""


class Busy(KleinError):
    """The server has no room for this request now."""


class QueueFull(Busy):
    """As many requests wait as may."""


class QuotaExceeded(Busy):
    """This caller is at one of its own limits; `violations` names it."""


class AcceleratorOutOfMemory(Busy):
    """The request alone did not fit beside what else runs."""


class DeadlineExceeded(KleinError):
    """The image was not complete within `timeout`."""


class DeadlineUnreachable(DeadlineExceeded):
    """Refused at once: the image would not be complete within `timeout`."""


class DeadlinePassed(DeadlineExceeded):
    """The server ended the request at its deadline."""


class Cancelled(KleinError):
    """The request was cancelled, here or by its key."""


class ReaderStalled(KleinError):
    """Events were not read for so long that the server gave the stream up."""


class AlphaUnavailable(KleinError):
    """No background could be found to cut out."""


class ResultGone(KleinError):
    """The image of this key is no longer kept; `metadata` says what it cost."""


class IdempotencyKeyReused(KleinError):
    """The idempotency key belongs to a different request."""


class UnknownKey(KleinError):
    """No running or kept request has this key."""


class Unauthenticated(KleinError):
    """The server does not know who calls."""


class PermissionDenied(KleinError):
    """The caller may not do this."""


class NotImplementedByServer(KleinError):
    """This server does not offer the call."""


class ServerError(KleinError):
    """The server's own fault; its log has more under `request_id`."""


class BrokenStream(KleinError):
    """The answer contradicts itself or ends without an image; nothing of it may be used."""
