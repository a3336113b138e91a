"""Which jobs go first: a pure function of what is known of them and the clock. Knows no threads, no engine.

Shortest remaining work first within a priority and caller, callers in turns; before all of them whoever is nearly due.
Every job is due: at its deadline, or when it has taken `STRETCH` times what it takes alone, so that a large one that
small ones overtake again and again is bounded.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

INTERACTIVE, STANDARD, BATCH = range(3)
STRETCH = {INTERACTIVE: 12.0, STANDARD: 12.0, BATCH: 48.0}  # times its lone time until a job is due
_SAVING = 3.0  # a shared step saves its fixed part for those present and for those still to come; by simulation
_NEAR = 1.0  # a job is nearly due when its slack is less than this many times what remains of it


@dataclass(frozen=True)
class Standing:
    """What the policy sees of a job. Seconds; `arrived` and `deadline` on the clock of `now`.

    remaining: until its image, were it alone from now on. whole: the same from its arrival.
    tokens, step: its part of a step, and the seconds by which that lengthens it.
    served: what its caller has had, as `Turns` counts it.
    """

    priority: int
    caller: str
    served: float
    arrived: float
    deadline: float | None
    steps_done: int
    tokens: int
    step: float
    remaining: float
    whole: float

    @property
    def due(self) -> float:
        stretched = self.arrived + STRETCH[self.priority] * self.whole
        return stretched if self.deadline is None else min(stretched, self.deadline)

    def is_hopeless(self, now: float) -> bool:
        """Whether the deadline cannot be met any more, whatever is done."""
        return self.deadline is not None and now + self.remaining > self.deadline

    def is_nearly_due(self, now: float) -> bool:
        return self.due - now - self.remaining <= _NEAR * self.remaining


def order(jobs: Sequence[Standing], now: float) -> list[int]:
    """The jobs' indices, who goes first first.

    Nearly due: earliest due first. Then interactive ones that have shown nothing yet: oldest first. Then by priority,
    the caller first who has had least, each with its shortest first. Last, what is too late for its deadline anyway.
    """
    asked: dict[tuple[int, str], float] = defaultdict(float)  # seconds of a caller's jobs that go before
    ranks: dict[int, tuple[float, ...]] = {}
    for i in sorted(range(len(jobs)), key=lambda i: (jobs[i].remaining, jobs[i].arrived)):
        job = jobs[i]
        turn = job.served + asked[job.priority, job.caller]
        asked[job.priority, job.caller] += job.remaining
        if job.is_hopeless(now):
            ranks[i] = (3, job.arrived)
        elif job.is_nearly_due(now):
            ranks[i] = (0, job.due)
        elif job.priority == INTERACTIVE and job.steps_done == 0:
            ranks[i] = (1, job.arrived)
        else:
            ranks[i] = (2, job.priority, turn, job.remaining, job.arrived)
    return sorted(ranks, key=ranks.__getitem__)


def pick(jobs: Sequence[Standing], now: float, tokens_max: int, fixed: float) -> list[int]:
    """The indices of the jobs that share the next step, of which `fixed` seconds pass whoever shares it.

    The first always goes. Each next one joins if it fits, and if the seconds by which it keeps those before it waiting
    are fewer than those it saves for itself and everyone after it: few join when few wait, many when many do.
    """
    picked: list[int] = []
    tokens = 0
    for i in order(jobs, now):
        lost = len(picked) * jobs[i].step
        saved = _SAVING * (len(jobs) - len(picked)) * fixed
        if not picked or (tokens + jobs[i].tokens <= tokens_max and lost <= saved):
            picked.append(i)
            tokens += jobs[i].tokens
    return picked


class Turns:
    """Seconds of service per caller, so that one with many requests does not hold up one with few.

    A caller that comes back starts level with whoever has had least, neither owed for its absence nor charged twice.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def come(self, caller: str) -> None:
        """A request of `caller` arrived."""
        if caller not in self._served:
            self._served[caller] = min(self._served.values(), default=0.0)

    def spend(self, caller: str, seconds: float) -> None:
        """Service that `caller` had; nothing for one that has gone."""
        if caller in self._served:
            self._served[caller] += seconds

    def go(self, caller: str) -> None:
        """The last request of `caller` ended."""
        self._served.pop(caller, None)

    def served(self, caller: str) -> float:
        return self._served.get(caller, 0.0)
