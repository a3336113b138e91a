"""The real scheduling loop on a scripted engine and a fake clock, beside what other servers do on the same device.

`python -m tests.scheduler.simulator` prints the tables of docs/decisions/0004. Nothing is measured here: klein 4B's
seconds are the limits of an H200's arithmetic, mini's those of two CPU cores.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

from kleinserve.config import load
from kleinserve.core import MEGAPIXEL, Operation, Options, PreviewOptions, Priority, Request, Size
from kleinserve.errors import KleinError
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import STAGES, Cost, Line
from kleinserve.scheduler.outbox import Outbox, Stepped
from kleinserve.scheduler.queue import Loop
from kleinserve.scheduler.scheduler import Scheduler
from kleinserve.scheduler.work import Work

from tests.scheduler.scripted import Clock, ScriptedEngine

STEPS = 4
NO_PREVIEWS = PreviewOptions(disabled=True)


@dataclass(frozen=True)
class Device:
    """What the stages take: a step by the `work` of its tokens, a prompt, a decode by its megapixels in pieces."""

    work: Callable[[int], float]
    step: Line
    text: Line
    decode: Line
    decode_pieces: int
    text_tokens: int
    step_tokens_max: int

    def step_seconds(self, sizes: Sequence[Size]) -> float:
        """Seconds of a step that these share."""
        return self.step.seconds(sum(self.work(self.text_tokens + size.tokens) for size in sizes))

    def decode_seconds(self, size: Size) -> float:
        return self.decode.seconds(size.pixels / MEGAPIXEL)

    def alone(self, size: Size) -> float:
        """Seconds of a request that has the device for itself."""
        return self.text.seconds(1) + STEPS * self.step_seconds([size]) + self.decode_seconds(size)


# The limits of klein 4B on an H200, 790 TFLOP/s, and half a millisecond for a step whatever is in it. TFLOP: a step of
# 768, 1536, 4608, 16896 tokens 4.9, 10.2, 34.8, 191.4; the decode of a megapixel 10.5, a prompt 2.91.
KLEIN = Device(
    work=lambda tokens: 6.136e-3 * tokens + 3.073e-7 * tokens**2,
    step=Line(0.0005, 1 / 790),
    text=Line(0.0, 2.91 / 790),
    decode=Line(0.0, 10.5 / 790),
    decode_pieces=8,
    text_tokens=512,
    step_tokens_max=8192,
)
MINI = Device(float, Line(0.004, 0.000085), Line(0.0, 0.002), Line(0.001, 0.35), 8, 40, 8192)
SMALL, MIDDLE, LARGE = Size(512, 512), Size(1024, 1024), Size(2048, 2048)
KLEIN_MIX = {SMALL: 0.6, MIDDLE: 0.3, LARGE: 0.1}
MINI_MIX = {Size(64, 64): 0.6, Size(128, 128): 0.3, Size(256, 256): 0.1}


@dataclass(eq=False)
class Simulated:
    """One request: when it comes, what it wants, and what became of it."""

    size: Size
    arrived: float
    alone: float
    priority: Priority = Priority.STANDARD
    caller: str = "anonymous"
    stretch: float | None = None  # the deadline, in lone times
    steps_done: int = 0  # for the comparisons
    first_step: float | None = None
    finished: float | None = None
    failed: KleinError | None = None

    @property
    def deadline(self) -> float | None:
        return None if self.stretch is None else self.arrived + self.stretch * self.alone

    @property
    def latency(self) -> float:
        assert self.finished is not None
        return self.finished - self.arrived

    @property
    def is_in_time(self) -> bool:
        return self.finished is not None and (self.deadline is None or self.finished <= self.deadline)


@dataclass
class Simulation:
    """Our scheduler on one device: requests come at their time, also while a step runs.

    What runs beside the steps goes before the next one, as where one device is shared and nothing is idle.
    """

    device: Device
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device, self.clock = self.device, Clock()
        self.engine = ScriptedEngine(
            self.clock,
            device.step,
            device.text,
            decode_line=device.decode,
            decode_pieces=device.decode_pieces,
            text_tokens=device.text_tokens,
            work=device.work,
            work_per_token=device.work(1),
            keeps_calls=False,
        )
        outbox = Outbox(
            started=lambda works: None,
            stepped=self._stepped,
            decoded=self._decoded,
            failed=self._failed,
            died=self._died,
        )
        config = load({"step_tokens_max": device.step_tokens_max, **self.settings})
        self.scheduler = Scheduler(self.engine, config, Metrics(), outbox, self.clock)
        lines = {stage: Line() for stage in STAGES} | {
            "text": Line(device.text.fixed, device.text.per_unit),
            "step": Line(device.step.fixed, device.step.per_unit),
            "decode": Line(device.decode.fixed, device.decode.per_unit),
        }
        self.scheduler.prepare(Cost(lines, is_calibrated=True))
        self.simulated: dict[Work, Simulated] = {}
        self.running_most = 0
        self._coming: list[Simulated] = []
        self.engine.passing = self._arrive

    def run(self, arrivals: Sequence[Simulated]) -> None:
        """Serve all."""
        self._coming = sorted(arrivals, key=lambda one: one.arrived, reverse=True)
        scheduler, changes = self.scheduler, self.scheduler._queue.changes
        while self._coming or self.simulated:
            seen = [changes(loop) for loop in Loop]
            is_idle = not (scheduler.aside.turn() or scheduler.stepping.turn())
            if is_idle and seen == [changes(loop) for loop in Loop]:
                assert self._coming, "nothing is done, and somebody waits"
                self._arrive(self._coming[-1].arrived)

    def _arrive(self, until: float) -> None:
        while self._coming and self._coming[-1].arrived <= until:
            one = self._coming.pop()
            self.clock.now = max(self.clock.now, one.arrived)
            options = Options(0, STEPS, 1.0, preview=NO_PREVIEWS, priority=one.priority)
            request = Request("x", Operation.GENERATE, "a star", (), one.size, options, one.caller)
            try:
                admitted = self.scheduler.submit(self.engine.render(request), one.deadline)
            except KleinError as error:
                one.failed = error
            else:
                self.simulated[admitted.work] = one
        self.running_most = max(self.running_most, self.scheduler.running)

    def _stepped(self, all_stepped: Sequence[Stepped]) -> None:
        for one in (self.simulated[stepped.work] for stepped in all_stepped):
            one.first_step = self.clock.now if one.first_step is None else one.first_step

    def _decoded(self, work: Work) -> None:
        self.simulated.pop(work).finished = self.clock.now

    def _failed(self, work: Work, error: KleinError) -> None:
        self.simulated.pop(work).failed = error

    def _died(self, error: BaseException) -> None:
        raise AssertionError from error


Choose = Callable[[Sequence[Simulated]], list[Simulated]]
Serve = Callable[[Sequence[Simulated], Device], None]


def ours(arrivals: Sequence[Simulated], device: Device) -> None:
    """The real loop."""
    Simulation(device).run(arrivals)


def _served_by(choose: Choose) -> Serve:
    """Steps for whoever `choose` says; a finished request's decode is done before the next step."""

    def serve(arrivals: Sequence[Simulated], device: Device) -> None:
        now, waiting, present = 0.0, list(arrivals), list[Simulated]()
        while waiting or present:
            if not present:
                now = max(now, waiting[0].arrived)
            while waiting and waiting[0].arrived <= now:
                present.append(waiting.pop(0))
            picked = choose(present)
            now += sum(device.text.seconds(1) for one in picked if one.steps_done == 0)
            now += device.step_seconds([one.size for one in picked])
            for one in picked:
                one.steps_done += 1
                one.first_step = now if one.first_step is None else one.first_step
                if one.steps_done == STEPS:
                    now += device.decode_seconds(one.size)
                    one.finished = now
            present = [one for one in present if one.finished is None]

    return serve


def _same_shape(present: Sequence[Simulated]) -> list[Simulated]:
    begun = [one for one in present if one.steps_done]
    return begun or [one for one in present if one.size == present[0].size][:8]


first_come = _served_by(lambda present: [present[0]])  # one request after another, as a lock does it
equal_share = _served_by(list)  # everyone in every step
same_shape = _served_by(_same_shape)  # static batches: the oldest and up to seven of its size, run to their end


def first_come_with_deadlines(arrivals: Sequence[Simulated], device: Device) -> None:
    """One request after another; whoever is too late when its turn comes is left out, and costs nothing."""
    now = 0.0
    for one in arrivals:
        now = max(now, one.arrived)
        if one.deadline is None or now < one.deadline:
            now += one.alone
            one.finished = now


def poisson(mix: dict[Size, float], load: float, count: int, device: Device, seed: int = 0) -> list[Simulated]:
    """Arrivals at `load` of what one request after another can do."""
    random = Random(seed)
    sizes = random.choices(list(mix), list(mix.values()), k=count)
    mean = fmean(device.alone(size) for size in sizes)
    now, arrivals = 0.0, []
    for size in sizes:
        now += random.expovariate(load / mean)
        arrivals.append(Simulated(size, now, device.alone(size)))
    return arrivals


def quantile(latencies: Iterable[float], share: float) -> float:
    """The latency that `share` of the requests do not exceed."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def goodput(serve: Serve, mix: dict[Size, float], load: float, stretch: float, device: Device, count: int) -> float:
    """Of requests with a deadline of so many lone times, the share that is done in time."""
    arrivals = poisson(mix, load, count, device, seed=1)
    for one in arrivals:
        one.stretch = stretch
    serve(arrivals, device)
    return fmean(one.is_in_time for one in arrivals)


def main() -> None:
    """Print latencies at three loads beside other ways to serve, and goodput with deadlines."""
    ways = {"first come first served": first_come, "equal share": equal_share, "static batches of 8": same_shape}
    ways["ours"] = ours
    models = (("klein 4B at an H200's limits", KLEIN, KLEIN_MIX), ("mini on two cores", MINI, MINI_MIX))
    for name, device, mix in models:
        heads = "".join(f" {size} p99 |" for size in mix)
        print(f"\n{name}, milliseconds; at most: the worst of the largest size, in its lone times\n")
        print(f"| load | served | mean |{heads} at most |\n|---|---|---|{'---|' * len(mix)}---|")
        for load_, (said, serve) in ((load_, way) for load_ in (0.6, 0.8, 0.95) for way in ways.items()):
            arrivals = poisson(mix, load_, 4000, device, seed=1)
            serve(arrivals, device)
            cells = [f"{fmean(one.latency for one in arrivals) * 1e3:.0f}"]
            cells += [f"{quantile((o.latency for o in arrivals if o.size == size), 0.99) * 1e3:.0f}" for size in mix]
            largest = list(mix)[-1]
            cells.append(f"{max(one.latency / one.alone for one in arrivals if one.size == largest):.1f}")
            print(f"| {load_:.0%} | {said} | {' | '.join(cells)} |")
        print("\nrequests done in time, of all that came, with deadlines of five lone times\n")
        print("| load | first come first served | ours |\n|---|---|---|")
        for load_ in (0.8, 1.2, 4.0):
            both = [goodput(way, mix, load_, 5.0, device, 2000) for way in (first_come_with_deadlines, ours)]
            print(f"| {load_:.0%} | {both[0]:.0%} | {both[1]:.0%} |")


if __name__ == "__main__":
    main()
