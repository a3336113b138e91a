"""Every way a request can fail, as a caller catches it. Knows nothing of gRPC; answer.py reads these off the wire.

KleinError
  InvalidField              a field is outside its range; `violations` names each
    RefusedReference        a reference is unreadable, unsupported or too large
  Unavailable               not now
    NotReady, Draining      warming up; going down
    ServerUnreachable       nothing answers there, or the connection was lost
  Busy                      the server has no room; `retry_delay` says when it may
    QueueFull, QuotaExceeded, AcceleratorOutOfMemory
  DeadlineExceeded          `timeout` passed
    DeadlineUnreachable     refused at once: it would pass
  Cancelled, ReaderStalled, AlphaUnavailable, ResultGone, KeyReused, UnknownKey,
  Unauthenticated, PermissionDenied, NotImplementedByServer, ServerError
  BrokenStream              an answer that cannot be true: wrong hash, wrong offset, no image
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One bad field: its path in the request's proto names, and what is wrong with it."""

    field: str
    description: str


class KleinError(Exception):
    """A request that did not bring its image.

    `status`: gRPC's name for it. `reason`: the contract's, "" where gRPC itself refused. `retry_delay`: seconds after
    which trying again can help, None where it cannot. `request_id`: what to tell the operator, "" if never assigned.
    """

    def __init__(
        self,
        message: str,
        *,
        status: str = "UNKNOWN",
        reason: str = "",
        retry_delay: float | None = None,
        violations: tuple[Violation, ...] = (),
        request_id: str = "",
    ):
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.retry_delay = retry_delay
        self.violations = violations
        self.request_id = request_id

    def __str__(self) -> str:
        again = f", try again in {self.retry_delay:g} s" if self.retry_delay is not None else ""
        return f"{self.message} ({self.reason or self.status}{again})"


class InvalidField(KleinError):
    """One or more fields are outside their range; all of them in one answer."""


class RefusedReference(InvalidField):
    """A reference cannot be used: REFERENCE_UNREADABLE, REFERENCE_UNSUPPORTED or REFERENCE_TOO_LARGE."""


class Unavailable(KleinError):
    """The server cannot take requests now."""


class NotReady(Unavailable):
    """The server has not finished its warm-up."""


class Draining(Unavailable):
    """The server is going down and takes no new requests."""


class ServerUnreachable(Unavailable):
    """Nothing answers at the address, or the connection was lost."""


class Busy(KleinError):
    """The server has no room for this request now."""


class QueueFull(Busy):
    """As many requests wait as may."""


class QuotaExceeded(Busy):
    """This caller has used what it may."""


class AcceleratorOutOfMemory(Busy):
    """The request alone did not fit beside what else runs."""


class DeadlineExceeded(KleinError):
    """The image was not complete within `timeout`."""


class DeadlineUnreachable(DeadlineExceeded):
    """Refused at once: the image would not be complete within `timeout`."""


class Cancelled(KleinError):
    """The request was cancelled, here or by its key."""


class ReaderStalled(KleinError):
    """Events were not read for so long that the server gave the stream up."""


class AlphaUnavailable(KleinError):
    """No background could be found to cut out."""


class ResultGone(KleinError):
    """The image of this key is no longer kept."""


class KeyReused(KleinError):
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
