"""The measuring: contestants in turn on the same traces, one line of a file per measurement, finished ones skipped."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from benchmarks import contestants, load, trace
from benchmarks.load import OK, Outcome
from benchmarks.plan import ALONE, BURST, DEADLINE_FACTOR, DEADLINES, OVERLOAD, POISSON, Plan
from benchmarks.serving import Serving

Row: TypeAlias = dict[str, Any]
CAPACITY, LONE = "capacity", "lone"  # rows beside those of the plan's loads
WARM_SEED, CAPACITY_SEED, LONE_SEED = 1, 2, 3
LOAD_SEEDS = 1000  # and up: one for each load and repetition


@dataclass(frozen=True)
class Capacity:
    """What the lock can do: with which threads, requests a second at saturation, seconds alone by class."""

    threads: int
    per_second: float
    lone_seconds: dict[tuple[int, bool], float]


class Bench:
    """One plan and its file of rows: the first line says the plan, each other one a measurement."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]):
        self.plan, self._folder, self._say = plan, folder, say
        self._until = time.monotonic() + plan.seconds_max
        self._file = folder / f"{plan.name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._together: dict[str, Serving] = {}
        lines = self._read()
        if lines and lines[0] != plan.shape:
            raise SystemExit(f"{self._file} was measured with {lines[0]}: move it away, or pass --fresh")
        self.rows: list[Row] = lines[1:]
        if not lines:
            self._write(plan.shape)

    def _read(self) -> list[Row]:
        """The file's lines; a last one that was cut off is dropped."""
        text = self._file.read_text() if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.write_text(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def run(self) -> list[Row]:
        """Measure everything that the plan wants and the file lacks. Returns all rows."""
        with ExitStack() as stack:
            if self.plan.starts_together:
                servers = [self._serving(name, self.plan.threads[0]) for name in self.plan.contestants]
                with ThreadPoolExecutor() as pool:
                    started = pool.map(stack.enter_context, servers)
                self._together = dict(zip(self.plan.contestants, started, strict=True))
            self._measure(self._capacity())
        return self.rows

    def _measure(self, capacity: Capacity) -> None:
        for repetition in range(self.plan.repetitions):
            for contestant in self.plan.contestants[:: 1 if repetition % 2 == 0 else -1]:  # a drift is no one's gain
                if package := contestants.missing(contestant):
                    self._say(f"{contestant} is left out: {package} is not installed")
                    continue
                wanted = [name for name in self.plan.loads if not self._has(contestant, name, repetition)]
                if wanted and time.monotonic() > self._until:
                    self._say(f"{contestant} is left out: {self.plan.seconds_max:g} s have passed")
                elif wanted:
                    with self._warm(contestant, capacity.threads) as server:
                        self._play(contestant, server, wanted, repetition, capacity)

    def _capacity(self) -> Capacity:
        """Contestant 2's, with each number of threads in turn."""
        for threads in self.plan.threads:
            if not self._has("lock", LONE, threads):
                with self._warm("lock", threads) as server:
                    arrivals = trace.burst(self.plan.burst, self.plan.edges, CAPACITY_SEED)
                    self._keep("lock", CAPACITY, threads, load.play(server.target, arrivals))
                    arrivals = trace.each_class(self.plan.edges, self.plan.lone_times, LONE_SEED)
                    self._keep("lock", LONE, threads, load.play_one_by_one(server.target, arrivals))
                    if len(self.plan.threads) == 1:  # nothing to choose: the same start serves the loads too
                        self._play("lock", server, list(self.plan.loads), 0, self._better())
        return self._better()

    def _better(self) -> Capacity:
        """The capacity with the number of threads that delivered more."""
        rates = {row["repetition"]: per_second(row) for row in self.rows if row["load"] == CAPACITY}
        best = max(rates, key=lambda threads: rates[threads])
        lone = next(row for row in self.rows if row["load"] == LONE and row["repetition"] == best)
        seconds: dict[tuple[int, bool], list[float]] = defaultdict(list)
        for outcome in outcomes(lone):
            seconds[outcome.edge, outcome.is_edit].append(outcome.seconds)
        return Capacity(best, rates[best], {of: median(alone) for of, alone in seconds.items()})

    def _play(self, contestant: str, server: Serving, loads: list[str], repetition: int, capacity: Capacity) -> None:
        for name in loads:
            arrivals = self._arrivals(name, repetition, capacity)
            before = server.stage_seconds()
            play = load.play_one_by_one if name == ALONE else load.play
            found = play(server.target, arrivals)
            after = server.stage_seconds()
            stages = {stage: round(after[stage] - before[stage], 4) for stage in after}
            memory = {"memory_bytes": server.peak_bytes(), "accelerator_bytes": contestants.accelerator_bytes()}
            self._keep(contestant, name, repetition, found, stages=stages, **memory)

    def _arrivals(self, name: str, repetition: int, capacity: Capacity) -> list[trace.Arrival]:
        """The load's trace, the same for every contestant."""
        plan, seed = self.plan, LOAD_SEEDS * (repetition + 1) + self.plan.loads.index(name)
        if name == ALONE:
            return trace.alone(plan.alone_edge, plan.alone, seed)
        if name == BURST:
            return trace.burst(plan.burst, plan.edges, seed)
        rate = capacity.per_second * (OVERLOAD if name == DEADLINES else POISSON[name])
        count = max(5, round(min(rate * plan.load_seconds_max, plan.requests)))
        arrivals = trace.poisson(rate, count, plan.edges, seed)
        return trace.with_timeouts(arrivals, capacity.lone_seconds, DEADLINE_FACTOR) if name == DEADLINES else arrivals

    @contextmanager
    def _warm(self, contestant: str, threads: int) -> Iterator[Serving]:
        """The contestant, started and warmed with a request of each class."""
        with ExitStack() as stack:
            server = self._together.get(contestant) or stack.enter_context(self._serving(contestant, threads))
            load.play_one_by_one(server.target, trace.each_class(self.plan.edges, 1, WARM_SEED))
            yield server

    def _serving(self, contestant: str, threads: int) -> AbstractContextManager[Serving]:
        return contestants.serving(contestant, self.plan, threads, self._folder / f"{contestant}.log")

    def _keep(self, contestant: str, name: str, repetition: int, found: list[Outcome], **facts: object) -> None:
        row: Row = {"contestant": contestant, "load": name, "repetition": repetition, **facts}
        row["outcomes"] = [[round(x, 5) if isinstance(x, float) else x for x in astuple(outcome)] for outcome in found]
        self._write(row)
        if found:
            ok = sum(outcome.code == OK for outcome in found)
            self._say(f"{contestant} {name} {repetition}: {ok} of {len(found)}, {per_second(row):.2f}/s")

    def _write(self, row: Row) -> None:
        if "load" in row:
            self.rows.append(row)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _has(self, contestant: str, name: str, repetition: int) -> bool:
        return any((r["contestant"], r["load"], r["repetition"]) == (contestant, name, repetition) for r in self.rows)


def outcomes(row: Row) -> list[Outcome]:
    return [Outcome(*values) for values in row["outcomes"]]


def per_second(row: Row) -> float:
    """Images delivered a second, from the first arrival to the last answer."""
    found = outcomes(row)
    first, last = min(o.at_seconds for o in found), max(o.at_seconds + o.seconds for o in found)
    return sum(o.code == OK for o in found) / (last - first)
