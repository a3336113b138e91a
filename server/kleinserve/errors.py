"""Every way a request can fail: class, gRPC status, reason.

Knows nothing of gRPC: `status` is the status code's name. rpc/answer.py is the only place that turns these into
a status on the wire.
"""

from dataclasses import dataclass
from typing import ClassVar

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
    """A failure with an answer for the caller. `retry_seconds`: when to try again, if trying again can help."""

    status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, violations: tuple[Violation, ...] = (), retry_seconds: float | None = None):
        super().__init__(message)
        self.message = message
        self.violations = violations
        self.retry_seconds = retry_seconds


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


class AcceleratorOutOfMemory(KleinError):
    status, reason = "RESOURCE_EXHAUSTED", "ACCELERATOR_OUT_OF_MEMORY"


class DeadlineUnreachable(KleinError):
    """An idle server could meet the deadline; this queue cannot."""

    status, reason = "RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE"


class DeadlineImpossible(KleinError):
    """Not even an idle server could meet the deadline."""

    status, reason = "DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE"


class DeadlinePassed(KleinError):
    status, reason = "DEADLINE_EXCEEDED", "DEADLINE_PASSED"


class NotReady(KleinError):
    """The warm-up takes a few seconds on an accelerator."""

    status, reason = "UNAVAILABLE", "NOT_READY"

    def __init__(self) -> None:
        super().__init__("the warm-up image is not made yet", retry_seconds=2.0)


class Draining(KleinError):
    """Another replica, or this one when it is back, can do it soon."""

    status, reason = "UNAVAILABLE", "DRAINING"

    def __init__(self) -> None:
        super().__init__("this server is shutting down", retry_seconds=2.0)


class Cancelled(KleinError):
    status, reason = "CANCELLED", "CANCELLED"


class ReaderStalled(KleinError):
    status, reason = "ABORTED", "READER_STALLED"


class NotImplementedHere(KleinError):
    status, reason = "UNIMPLEMENTED", "NOT_IMPLEMENTED"


class Internal(KleinError):
    """Our fault. The message names the request id and nothing of the server's insides."""


class UnusableCheckpoint(Exception):
    """The model given to `--model` cannot be served: one line for the operator, exit code 2."""
