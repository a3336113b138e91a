"""What a backend promises to the desk: requests in, core events out. Everything is called on the event loop."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from kleinserve.core import Admitted, BackendEvent, ModelFacts, Priority, Request

Sink = Callable[[BackendEvent], None]
"""Takes what happens to one request, on the event loop, in order, and returns at once. The last: Finished or Failed."""


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True)
class Load:
    """How busy a backend is: predicted seconds until all that it has is done, and what a default request would wait."""

    busy_seconds: float
    wait_seconds: float
    waiting: int
    running: int


class Backend(Protocol):
    """Makes images. A request is known by its `request_id` from `submit` to its last event."""

    @property
    def facts(self) -> ModelFacts: ...

    async def start(self, on_state: Callable[[State], None]) -> None:
        """Load and warm; tell READY once a real image was made, later DEAD if it can make none any more."""
        ...

    async def submit(self, request: Request, seconds_left: float | None, sink: Sink) -> Admitted:
        """Take the request; `seconds_left` until its deadline, None: it has none.

        Raises: DeadlineUnreachable, DeadlineImpossible, DeadlinePassed, InvalidField, QueueFull, NotReady, Draining;
        then `sink` is never called.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Stop it at the next boundary; its last event is then Failed(Cancelled), unless it has ended before."""
        ...

    def change(self, request_id: str, seconds_left: float | None, priority: Priority) -> None:
        """Another reader has joined or left: the request's deadline and priority are now these."""
        ...

    def load(self) -> Load:
        """Running sums: it costs nothing per waiting request."""
        ...

    async def drain(self, grace_seconds: float) -> None:
        """Let what it has finish for so long, end the rest with Draining, and stop."""
        ...
