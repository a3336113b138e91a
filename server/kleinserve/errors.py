"""Every way a request can fail: class, gRPC status, reason.

Knows nothing of gRPC: `status` is the status code's name. rpc/status.py is the only place that turns these into
a status on the wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass

VALUE_CHARACTERS_MAX = 64  # a refused value is quoted, but never by the megabyte


@dataclass(frozen=True)
class Violation:
    """One bad field: its path in the request's proto names, and what is wrong, with value and allowed range."""

    field: str
    description: str


def quoted(value: object) -> str:
    """The value as the message shows it, cut at 64 characters."""
    text = repr(value[:VALUE_CHARACTERS_MAX] if isinstance(value, str) else value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"


class KleinError(Exception):
    """A failure with an answer for the caller. `retry_seconds`: when to try again, if trying again can help.

    `metadata`: what ErrorInfo says besides the request id.
    """

    status: str = "INTERNAL"
    reason: str = "INTERNAL"
    is_by_server: bool = True  # not what the caller brought about: its megapixels come back

    def __init__(
        self,
        message: str,
        *,
        violations: tuple[Violation, ...] = (),
        retry_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.violations = violations
        self.retry_seconds = retry_seconds
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[object, ...]:
        """As a value, whatever the class's own constructor takes: errors travel between processes."""
        return _remade, (type(self), self.__dict__)


def _remade(kind: type[KleinError], facts: dict[str, object]) -> KleinError:
    error = kind.__new__(kind, facts["message"])
    error.__dict__.update(facts)
    return error


class InvalidField(KleinError):
    """One or more fields are outside their range; all of them in one answer."""

    status, reason = "INVALID_ARGUMENT", "INVALID_FIELD"

    def __init__(self, *violations: Violation):
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


class RefusedReference(KleinError):
    """A reference that cannot be used; `index` is its place in the request, from 0."""

    status = "INVALID_ARGUMENT"

    def __init__(self, index: int, description: str):
        field = f"references[{index}].image"
        super().__init__(f"{field}: {description}", violations=(Violation(field, description),))


class ReferenceUnreadable(RefusedReference):
    reason = "REFERENCE_UNREADABLE"


class ReferenceUnsupported(RefusedReference):
    reason = "REFERENCE_UNSUPPORTED"


class ReferenceTooLarge(RefusedReference):
    reason = "REFERENCE_TOO_LARGE"


class AlphaUnavailable(KleinError):
    """No background could be found to cut out."""

    status, reason = "FAILED_PRECONDITION", "ALPHA_UNAVAILABLE"


class QueueFull(KleinError):
    status, reason = "RESOURCE_EXHAUSTED", "QUEUE_FULL"


class QuotaExceeded(KleinError):
    """A caller is at one of its own limits; `limit` is its name in the callers file. `why`: more for the message."""

    status, reason = "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"

    def __init__(self, caller: str, limit: str, value: int, retry_seconds: float, why: str = ""):
        super().__init__(f"caller {caller} is at its limit {limit} = {value}{why}", retry_seconds=retry_seconds)
        self.caller, self.limit, self.value = caller, limit, value


class AcceleratorOutOfMemory(KleinError):
    """The engine raises it for work that found no memory; then nothing of that work has happened."""

    status, reason = "RESOURCE_EXHAUSTED", "ACCELERATOR_OUT_OF_MEMORY"


class DeadlineUnreachable(KleinError):
    """An idle server could meet the deadline; this queue cannot."""

    status, reason = "RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE"


class DeadlineImpossible(KleinError):
    """Not even an idle server could meet the deadline."""

    status, reason = "DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE"


class DeadlinePassed(KleinError):
    status, reason = "DEADLINE_EXCEEDED", "DEADLINE_PASSED"
    is_by_server = False


class NotReady(KleinError):
    """The warm-up takes a few seconds on an accelerator; so does a replica in the place of one that was lost."""

    status, reason = "UNAVAILABLE", "NOT_READY"

    def __init__(self, message: str = "the warm-up image is not made yet") -> None:
        super().__init__(message, retry_seconds=2.0)


class Draining(KleinError):
    """Another replica, or this one when it is back, can do it soon."""

    status, reason = "UNAVAILABLE", "DRAINING"

    def __init__(self) -> None:
        super().__init__("this server is shutting down", retry_seconds=2.0)


class LedgerUnavailable(KleinError):
    """What cannot be written down is not delivered."""

    status, reason = "UNAVAILABLE", "LEDGER_UNAVAILABLE"

    def __init__(self, message: str = "usage cannot be recorded now", retry_seconds: float = 2.0):
        super().__init__(message, retry_seconds=retry_seconds)


class KeyElsewhere(LedgerUnavailable):
    """The key is another server's, which others reach at `address`; "": it did not say where."""

    def __init__(self, address: str):
        super().__init__("the key is another server's now", retry_seconds=1.0)
        self.address = address


class IdempotencyKeyReused(KleinError):
    """The key belongs to a different request."""

    status, reason = "ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"


class UnknownKey(KleinError):
    status, reason = "NOT_FOUND", "UNKNOWN_KEY"


class ResultGone(KleinError):
    """The key's image was delivered, or billed, and is no longer kept."""

    status, reason = "FAILED_PRECONDITION", "RESULT_GONE"


class Unauthenticated(KleinError):
    """`why` is the label of klein_unauthenticated_total: none, unknown, conflict, certificate."""

    status, reason = "UNAUTHENTICATED", "UNAUTHENTICATED"

    def __init__(self, message: str, why: str):
        super().__init__(message)
        self.why = why


class PermissionDenied(KleinError):
    status, reason = "PERMISSION_DENIED", "PERMISSION_DENIED"


class Cancelled(KleinError):
    status, reason = "CANCELLED", "CANCELLED"
    is_by_server = False


class ReaderStalled(KleinError):
    status, reason = "ABORTED", "READER_STALLED"


class NotImplementedHere(KleinError):
    status, reason = "UNIMPLEMENTED", "NOT_IMPLEMENTED"


class Internal(KleinError):
    """Our fault. The message names the request id and nothing of the server's insides."""


class AcceleratorLost(Exception):
    """The accelerator is unusable for this process: the engine raises it, and the process ends for a new one."""


class UnusableCheckpoint(Exception):
    """The model given to `--model` cannot be served: one line for the operator, exit code 2."""


class BadConfig(Exception):
    """A setting that is unknown, unparsable, out of range or cannot be honoured here: one line, exit code 2."""
