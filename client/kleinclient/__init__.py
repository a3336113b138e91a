"""A client for klein servers: images, previews and usage over gRPC, blocking or asynchronous.

    from kleinclient import Client

    with Client("klein.example:50051", tls=True, token=read_token) as klein:
        stream = klein.generate("a red circle left of a blue square", seed=7, timeout=60)
        for preview in stream.previews():
            preview.save(f"step-{preview.step}.jpg")
        image = stream.result()
        print(image.save("out.png"), image)

- **Where**: a target is HOST, HOST:PORT, dns:///HOST and more (kleinclient.target); a missing port is 50051. Left
  out, it is KLEIN_SERVER, or this machine.
- **Who**: `token` (a string, or what gives one before every attempt; KLEIN_TOKEN), `tls_ca` (KLEIN_TLS_CA),
  `tls=True` for the well-known authorities, `tls_certificate` and `tls_key`. Without TLS a token is sent to this
  machine alone.
- **Once**: every image request has an idempotency key, a random one unless it is given one, so that it is made and
  billed once, whatever breaks. A stream that breaks is taken up again: `Retrying` says so, what was told is not told
  again, and `image.is_replay` is true. `detach=True` lets a request outlive its stream; `attach` and `cancel` find it
  by its key.
- **Again**: what a server refuses for now is sent again after the delay that it names and some chance, within
  `timeout`; a server that restarts is waited for (kleinclient.retry.Retry has the numbers).
- **Errors**: all are KleinError, one class for each reason (kleinclient.errors has the tree), with `reason`,
  `status`, `violations`, `retry_after`, `request_id` and `metadata`.

AsyncClient has the same methods, awaited. Importing the package loads gRPC only with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kleinclient.aio import AsyncClient
    from kleinclient.capabilities import Capabilities, Price
    from kleinclient.client import Client
    from kleinclient.errors import (
        AcceleratorOutOfMemory,
        AlphaUnavailable,
        BrokenStream,
        Busy,
        Cancelled,
        ConnectionLost,
        DeadlineExceeded,
        DeadlinePassed,
        DeadlineUnreachable,
        Draining,
        IdempotencyKeyReused,
        InvalidField,
        KleinError,
        LedgerUnavailable,
        NotImplementedByServer,
        NotReady,
        PermissionDenied,
        QueueFull,
        QuotaExceeded,
        ReaderStalled,
        ReferenceTooLarge,
        ReferenceUnreadable,
        ReferenceUnsupported,
        RefusedReference,
        RequestTooLarge,
        ResultGone,
        ServerError,
        ServerUnreachable,
        Unauthenticated,
        Unavailable,
        UnknownKey,
        Violation,
    )
    from kleinclient.events import (
        Accepted,
        Event,
        Image,
        Preview,
        Progress,
        Queued,
        Retrying,
        Size,
        Started,
        Timings,
    )
    from kleinclient.request import Options, Reference
    from kleinclient.retry import Retry
    from kleinclient.stream import AsyncImageStream, ImageStream
    from kleinclient.usage import Usage, UsageRecord, UsageTotal

__all__ = [
    "AcceleratorOutOfMemory",
    "Accepted",
    "AlphaUnavailable",
    "AsyncClient",
    "AsyncImageStream",
    "BrokenStream",
    "Busy",
    "Cancelled",
    "Capabilities",
    "Client",
    "ConnectionLost",
    "DeadlineExceeded",
    "DeadlinePassed",
    "DeadlineUnreachable",
    "Draining",
    "Event",
    "IdempotencyKeyReused",
    "Image",
    "ImageStream",
    "InvalidField",
    "KleinError",
    "LedgerUnavailable",
    "NotImplementedByServer",
    "NotReady",
    "Options",
    "PermissionDenied",
    "Preview",
    "Price",
    "Progress",
    "QueueFull",
    "Queued",
    "QuotaExceeded",
    "ReaderStalled",
    "Reference",
    "ReferenceTooLarge",
    "ReferenceUnreadable",
    "ReferenceUnsupported",
    "RefusedReference",
    "RequestTooLarge",
    "ResultGone",
    "Retry",
    "Retrying",
    "ServerError",
    "ServerUnreachable",
    "Size",
    "Started",
    "Timings",
    "Unauthenticated",
    "Unavailable",
    "UnknownKey",
    "Usage",
    "UsageRecord",
    "UsageTotal",
    "Violation",
]

_HOMES = ("errors", "events", "usage", "request", "retry", "capabilities", "stream", "client", "aio")


def __getattr__(name: str) -> object:
    """Loads a public name with its first use: the command must set gRPC up before gRPC is loaded."""
    if name in __all__:
        for home in _HOMES:
            found = vars(import_module(f"kleinclient.{home}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
