"""Whether the server starts, is ready, drains or is dead: one word for everyone who asks."""

from collections.abc import Callable

from kleinserve.backend.backend import State
from kleinserve.errors import Draining, NotReady


class Lifecycle:
    """The server's state, and who is told when it changes. DEAD stays; DRAINING ends in nothing but DEAD."""

    def __init__(self) -> None:
        self.state = State.STARTING
        self._watchers: list[Callable[[State], None]] = []

    def watch(self, watcher: Callable[[State], None]) -> None:
        """Have `watcher` called, on the event loop, with each new state."""
        self._watchers.append(watcher)

    def become(self, state: State) -> None:
        if self.state is State.DEAD or (self.state is State.DRAINING and state is not State.DEAD):
            return
        self.state = state
        for watcher in self._watchers:
            watcher(state)

    def check(self) -> None:
        """Raise NotReady or Draining where no request is taken now."""
        if self.state is State.STARTING:
            raise NotReady()
        if self.state is not State.READY:
            raise Draining()
