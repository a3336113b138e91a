"""What a front knows of its replicas: what each said of its work, and what was sent to it since. One a process.

Apart from the router, which Ray pickles by value: a table of its module would be another in each process's copy.
"""

import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from kleinserve.backend.backend import Load
from kleinserve.core import Request


@dataclass(frozen=True)
class _Sent:
    """A request on its way to a replica that has not spoken of it yet, and the seconds that it will take there."""

    replica: str
    seconds: float


class Board:
    """Replicas and requests are known by their ids. On the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._said: dict[str, tuple[float, Load]] = {}  # when, and what
        self._sent: dict[str, _Sent] = {}
        self._holders: dict[str, str] = {}
        self._avoided: dict[str, str] = {}
        self._seconds_per_work = 0.0

    def choose(self, request: Request, replicas: Collection[str]) -> list[str]:
        """The replicas in order of their predicted work, the one that lost this request last; the first is counted.

        Counted now and not when it was sent: else all that come within a moment choose the same.
        """
        self._sent.pop(request.request_id, None)
        self._said = {replica: said for replica, said in self._said.items() if replica in replicas}
        avoided = self._avoided.get(request.request_id)
        keys = {replica: (replica == avoided, self._busy(replica), random.random()) for replica in replicas}
        order = sorted(keys, key=keys.__getitem__)
        self._sent[request.request_id] = _Sent(order[0], self._seconds_per_work * _work(request))
        return order

    def _busy(self, replica: str) -> float:
        """What is left of what it said, and what was sent since."""
        since, said = self._said.get(replica, (0.0, Load(0.0, 0.0, 0, 0)))
        left = max(0.0, said.busy_seconds - (self._clock() - since))
        return left + sum(sent.seconds for sent in self._sent.values() if sent.replica == replica)

    def hear(self, request_id: str, replica: str, load: Load) -> None:
        """A replica told of a request, and so that it has it."""
        self._sent.pop(request_id, None)
        self._holders[request_id] = replica
        self._said[replica] = self._clock(), load

    def learn(self, request: Request, seconds: float) -> None:
        """A replica has foreseen that the request takes so long."""
        self._seconds_per_work = seconds / _work(request)

    def holder(self, request_id: str) -> str | None:
        """The replica that has the request."""
        return self._holders.get(request_id)

    def lose(self, request_id: str) -> None:
        """Its replica is gone, or says nothing: another one is to have it."""
        sent = self._sent.pop(request_id, None)
        replica = self._holders.pop(request_id, None) or (sent.replica if sent else None)
        if replica is not None:
            self._avoided[request_id] = replica

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        for table in (self._sent, self._holders, self._avoided):
            table.pop(request_id, None)

    @property
    def busy_seconds(self) -> float:
        """Of the replica that has the least to do."""
        return min(map(self._busy, self._said), default=0.0)

    @property
    def wait_seconds(self) -> float:
        """What a default request would wait at the replica where it waits least."""
        now = self._clock()
        return min((max(0.0, said.wait_seconds - (now - since)) for since, said in self._said.values()), default=0.0)


def _work(request: Request) -> int:
    """In proportion to its seconds, roughly: a step costs its tokens, those of its references too."""
    tokens = request.size.tokens + sum(size.tokens for size in request.reference_sizes)
    return max(1, request.options.steps * tokens)


BOARD = Board()
