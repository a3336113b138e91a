"""One error of every kind that a caller can be answered with."""

from kleinserve import errors
from kleinserve.errors import KleinError, Violation

EVERY: list[KleinError] = [
    errors.InvalidField(Violation("options.width", "100; a multiple of 16"), Violation("prompt", "blank — 100 %\n")),
    errors.ReferenceUnreadable(0, "empty"),
    errors.ReferenceUnsupported(1, "animated"),
    errors.ReferenceTooLarge(3, "11534336 bytes; at most 10485760"),
    errors.AlphaUnavailable("no background could be found"),
    errors.ResultGone("it was delivered", metadata={"record_id": "r", "cost_microusd": "14000"}),
    errors.QueueFull("256 requests are waiting", retry_seconds=2.5),
    errors.AcceleratorOutOfMemory("not enough memory", retry_seconds=1.0),
    errors.QuotaExceeded("web", "megapixels_per_minute", 120, 1.25),
    errors.DeadlineUnreachable("9 s are needed", retry_seconds=7.25),
    errors.DeadlineImpossible("9 s are needed"),
    errors.DeadlinePassed("the deadline passed"),
    errors.IdempotencyKeyReused("another request has it"),
    errors.UnknownKey("no job has it"),
    errors.NotReady(),
    errors.Draining(),
    errors.LedgerUnavailable(),
    errors.KeyElsewhere("other:1"),
    errors.Cancelled("an operator cancelled it"),
    errors.ReaderStalled("nothing was read"),
    errors.Unauthenticated("no token", "none"),
    errors.PermissionDenied("only an admin"),
    errors.NotImplementedHere("no ledger"),
    errors.Internal("internal error, request a"),
]


def name(error: KleinError) -> str:
    return type(error).__name__
