"""How many replicas there are to be: by the seconds of work that they foresee. Ray's controller asks."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

BUSY_SECONDS = "busy_seconds"
BUSY_SECONDS_EACH = 2.0  # of work before a replica, on average over Ray's window; more, and another one is wanted


def by_busy_seconds(context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
    """So many that each has at most BUSY_SECONDS_EACH before it. Ray applies the bounds and the delays."""
    busy = (context.aggregated_metrics or {}).get(BUSY_SECONDS)
    if not busy:  # none has said anything yet
        return context.target_num_replicas, {}
    return math.ceil(sum(busy.values()) / BUSY_SECONDS_EACH), {}
