"""One device under a policy, on a fake clock: steps and decodes take what a cost line says. Knows no threads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

from kleinserve.scheduler.cost import Line
from kleinserve.scheduler.policy import STANDARD, Standing, Turns, order, pick

STEPS = 4


@dataclass(frozen=True)
class Kind:
    """A class of requests: its tokens, which are its work, and the seconds of its decode."""

    name: str
    tokens: int
    decode: float


@dataclass(eq=False)
class Simulated:
    """One request on its way through the device."""

    kind: Kind
    arrived: float
    line: Line
    priority: int = STANDARD
    caller: str = ""
    stretch: float | None = None  # the deadline, in lone times
    steps_done: int = 0
    first_step: float | None = None
    finished: float | None = None
    alone: float = field(init=False)

    def __post_init__(self) -> None:
        self.alone = STEPS * self.line.seconds(self.kind.tokens) + self.kind.decode

    @property
    def deadline(self) -> float | None:
        return None if self.stretch is None else self.arrived + self.stretch * self.alone

    def standing(self, turns: Turns) -> Standing:
        remaining = (STEPS - self.steps_done) * self.line.seconds(self.kind.tokens) + self.kind.decode
        return Standing(
            self.priority,
            self.caller,
            turns.served(self.caller),
            self.arrived,
            self.deadline,
            self.steps_done,
            self.kind.tokens,
            self.line.per_unit * self.kind.tokens,
            remaining,
            self.alone,
        )

    @property
    def latency(self) -> float:
        assert self.finished is not None
        return self.finished - self.arrived


Policy = Callable[[Sequence[Simulated], float, Turns], list[Simulated]]


def shortest_first(tokens_max: int, line: Line) -> Policy:
    """Ours."""

    def choose(jobs: Sequence[Simulated], now: float, turns: Turns) -> list[Simulated]:
        return [jobs[i] for i in pick([job.standing(turns) for job in jobs], now, tokens_max, line.fixed)]

    return choose


def first_come(jobs: Sequence[Simulated], now: float, turns: Turns) -> list[Simulated]:
    """One request after another, as a lock does it."""
    return [jobs[0]]


def equal_share(jobs: Sequence[Simulated], now: float, turns: Turns) -> list[Simulated]:
    """Everyone in every step."""
    return list(jobs)


def same_shape(requests_max: int) -> Policy:
    """Static batches: the oldest and whoever has its size, run to their end."""

    def choose(jobs: Sequence[Simulated], now: float, turns: Turns) -> list[Simulated]:
        begun = [job for job in jobs if job.steps_done]
        return begun or [job for job in jobs if job.kind is jobs[0].kind][:requests_max]

    return choose


def run(arrivals: Sequence[Simulated], policy: Policy, line: Line) -> float:
    """Serve all; returns when the last one finished. A finished request's decode is done before the next step."""
    now, turns = 0.0, Turns()
    waiting, present = list(arrivals), list[Simulated]()
    while waiting or present:
        if not present:
            now = max(now, waiting[0].arrived)
        while waiting and waiting[0].arrived <= now:
            present.append(waiting.pop(0))
            turns.come(present[-1].caller)
        picked = policy(present, now, turns)
        now += line.seconds(sum(job.kind.tokens for job in picked))
        for job in picked:
            job.steps_done += 1
            turns.spend(job.caller, line.seconds(job.kind.tokens))
            job.first_step = now if job.first_step is None else job.first_step
        done = [job for job in picked if job.steps_done == STEPS]
        for i in order([job.standing(turns) for job in done], now):
            now += done[i].kind.decode
            done[i].finished = now
        present = [job for job in present if job.finished is None]
    return now


def poisson(kinds: dict[Kind, float], load: float, count: int, line: Line, seed: int = 0) -> list[Simulated]:
    """Arrivals at `load` of what one request after another can do."""
    random = Random(seed)
    drawn = random.choices(list(kinds), list(kinds.values()), k=count)
    mean = fmean(STEPS * line.seconds(kind.tokens) + kind.decode for kind in drawn)
    now, arrivals = 0.0, []
    for kind in drawn:
        now += random.expovariate(load / mean)
        arrivals.append(Simulated(kind, now, line))
    return arrivals


def quantile(latencies: Sequence[float], share: float) -> float:
    """The latency that `share` of the requests do not exceed."""
    return sorted(latencies)[min(len(latencies) - 1, int(share * len(latencies)))]


def main() -> None:
    """Print the policies side by side at 80 % load, for klein 4B's steps on an H200 and for mini's on two cores."""
    klein = {Kind("512²", 1536, 0.010): 0.6, Kind("1024²", 4608, 0.035): 0.3, Kind("2048²", 16896, 0.160): 0.1}
    mini = {Kind("64²", 56, 0.001): 0.6, Kind("128²", 104, 0.001): 0.3, Kind("256²", 296, 0.001): 0.1}
    for name, kinds, line in (("klein", klein, Line(0.0005, 0.0441 / 4608)), ("mini", mini, Line(0.004, 0.000085))):
        policies: dict[str, Policy] = {
            "first come first served": first_come,
            "equal share": equal_share,
            "static batches of 8": same_shape(8),
            "ours": shortest_first(8192, line),
        }
        for said, policy in policies.items():
            jobs = poisson(kinds, 0.8, 4000, line, seed=1)
            run(jobs, policy, line)
            cells = [f"{fmean(job.latency for job in jobs) * 1e3:.0f}"]
            cells += [f"{quantile([j.latency for j in jobs if j.kind is k], 0.99) * 1e3:.0f}" for k in kinds]
            cells.append(f"{max(job.latency / job.alone for job in jobs if job.kind is list(kinds)[-1]):.1f}")
            print(f"| {name} | {said} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
