"""Our nouns: what a request asks for, what happens to it, what it costs. Standard library only; all frozen.

Knows nothing of gRPC, torch or Pillow.
"""

from kleinserve.core.caller import ANONYMOUS, Caller
from kleinserve.core.demand import Demand
from kleinserve.core.draft import Draft
from kleinserve.core.events import (
    Accepted,
    Admitted,
    BackendEvent,
    Completed,
    EncodedImage,
    Event,
    Failed,
    Finished,
    Preview,
    Progress,
    Queued,
    Span,
    Spent,
    Started,
    Timings,
)
from kleinserve.core.model import AlphaMethod, ModelFacts, Variant
from kleinserve.core.request import (
    Background,
    ImageFormat,
    OnDisconnect,
    Operation,
    Options,
    Output,
    PreviewFormat,
    PreviewOptions,
    Priority,
    Reference,
    Request,
)
from kleinserve.core.size import EDGE_MULTIPLE, MEGAPIXEL, Pixels, Size
from kleinserve.core.usage import Outcome, Usage, UsageRecord

__all__ = [
    "ANONYMOUS",
    "EDGE_MULTIPLE",
    "MEGAPIXEL",
    "Accepted",
    "Admitted",
    "AlphaMethod",
    "BackendEvent",
    "Background",
    "Caller",
    "Completed",
    "Demand",
    "Draft",
    "EncodedImage",
    "Event",
    "Failed",
    "Finished",
    "ImageFormat",
    "ModelFacts",
    "OnDisconnect",
    "Operation",
    "Options",
    "Outcome",
    "Output",
    "Pixels",
    "Preview",
    "PreviewFormat",
    "PreviewOptions",
    "Priority",
    "Progress",
    "Queued",
    "Reference",
    "Request",
    "Size",
    "Span",
    "Spent",
    "Started",
    "Timings",
    "Usage",
    "UsageRecord",
    "Variant",
]
