"""Which jobs go first: a pure function of what is known of them and the clock. Knows no threads, no engine.

Shortest remaining work first within a priority and caller, callers in turns; before all of them whoever is nearly due.
Every job is due: at its deadline, or when it has taken `STRETCH` times what it takes alone. A deadline that is near
goes before everything. What is due by its age alone, as large jobs are that small ones overtake again and again, has
a share of the time, so that many of them do not hold up everyone else.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from kleinserve.scheduler.turns import Account

INTERACTIVE, STANDARD, BATCH = range(3)
STRETCH = {INTERACTIVE: 12.0, STANDARD: 12.0, BATCH: 48.0}  # times its lone time until a job is due
_SAVING = 3.0  # a shared step saves its fixed part for those present and for those still to come; by simulation
_NEAR = 1.0  # a job is nearly due when its slack is less than this many times what remains of it
_SHARED = 0.5  # of its slack, for those who share its steps: predictions are off


@dataclass(slots=True)
class Standing:
    """What the policy sees of a job. Seconds; `arrived` and `deadline` on the clock of `now`.

    remaining: until its image, were it alone from now on. whole: the same from its arrival.
    tokens, step: its part of a step, and the seconds by which that lengthens it. held_up: seconds of a full step, which
    may be under way when its turn comes, and is not taken back.
    account: its caller's. due: at its deadline or by its age, whichever is earlier.
    """

    priority: int
    account: Account
    arrived: float
    deadline: float | None
    steps_done: int
    steps_left: int
    tokens: int
    step: float
    remaining: float
    whole: float
    held_up: float = 0.0
    due: float = field(init=False)

    def __post_init__(self) -> None:
        stretched = self.arrived + STRETCH[self.priority] * self.whole
        self.due = stretched if self.deadline is None else min(stretched, self.deadline)

    def is_hopeless(self, now: float) -> bool:
        """Whether the deadline cannot be met any more, whatever is done."""
        return self.deadline is not None and now + self.remaining > self.deadline

    def is_pressed(self, now: float) -> bool:
        """Whether its deadline is near."""
        return self.deadline is not None and self.deadline - now <= (1 + _NEAR) * self.remaining + self.held_up

    def room(self, now: float) -> float:
        """Seconds by which each of its steps may be longer than alone, for its deadline's sake."""
        if self.deadline is None:
            return math.inf
        return _SHARED * (self.deadline - now - self.remaining) / max(1, self.steps_left)

    def is_aged(self, now: float) -> bool:
        """Whether it is nearly due by its age alone."""
        return self.due - now <= (1 + _NEAR) * self.remaining and not self.is_pressed(now)


def order(jobs: Sequence[Standing], now: float, *, aged_first: bool = True) -> list[int]:
    """The jobs' indices, who goes first first.

    Whose deadline is near, earliest first. With `aged_first` who is nearly due by its age. Then interactive ones that
    have shown nothing yet, oldest first. Then by priority, the caller first who has had least, each with its shortest
    first. Last, what is too late for its deadline anyway.
    """
    pressed = _pressed(jobs, now)
    asked: dict[tuple[int, Account], float] = defaultdict(float)  # seconds of a caller's jobs that go before
    ranks: list[tuple[tuple[float, ...], int]] = []
    for i in sorted(range(len(jobs)), key=lambda i: (jobs[i].remaining, jobs[i].arrived)):
        job = jobs[i]
        turn = job.account.served + asked[job.priority, job.account]
        asked[job.priority, job.account] += job.remaining
        if job.is_hopeless(now):
            rank: tuple[float, ...] = (4, job.arrived)
        elif i in pressed:
            rank = (0, job.deadline or 0.0)
        elif aged_first and job.is_aged(now):
            rank = (1, job.due)
        elif job.priority == INTERACTIVE and job.steps_done == 0:
            rank = (2, job.arrived)
        else:
            rank = (3, job.priority, turn, job.remaining, job.arrived)
        ranks.append((rank, i))
    return [i for _, i in sorted(ranks)]


def _pressed(jobs: Sequence[Standing], now: float) -> set[int]:
    """Those that must go now for the sake of a deadline: of one that is near when those before it have had their time.

    Many deadlines that are met one by one are missed when each waits until it is near by itself.
    """
    met = [i for i, job in enumerate(jobs) if job.deadline is not None and not job.is_hopeless(now)]
    met.sort(key=lambda i: jobs[i].deadline or 0.0)
    until, last = now, 0
    for count, i in enumerate(met, 1):
        if jobs[i].is_pressed(until):
            last = count
        until += jobs[i].remaining
    return set(met[:last])


def pick(jobs: Sequence[Standing], now: float, tokens_max: int, fixed: float, *, aged_first: bool = True) -> list[int]:
    """The indices of the jobs that share the next step, of which `fixed` seconds pass whoever shares it.

    The first always goes. Each next one joins if it fits, and if the seconds by which it keeps those before it waiting
    are fewer than those it saves for itself and everyone after it: few join when few wait, many when many do. Nobody
    joins for whom a deadline of those before would be missed.
    """
    picked: list[int] = []
    tokens, room, longer = 0, math.inf, 0.0
    for i in order(jobs, now, aged_first=aged_first):
        job = jobs[i]
        lost = len(picked) * job.step
        saved = _SAVING * (len(jobs) - len(picked)) * fixed
        if not picked or (tokens + job.tokens <= tokens_max and lost <= saved and job.step <= room):
            picked.append(i)
            tokens += job.tokens
            if not job.is_hopeless(now):
                room = min(room - job.step, job.room(now) - longer)
            longer += job.step
    return picked
