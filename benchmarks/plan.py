"""How much is measured of what: one plan per command. Plain data."""

from dataclasses import dataclass

POISSON = {"30": 0.30, "60": 0.60, "80": 0.80, "95": 0.95}  # of the lock's measured capacity
ALONE, BURST, DEADLINES = "alone", "burst", "deadlines"
OVERLOAD = 1.20  # of the deadlines' load
DEADLINE_FACTOR = 3.0  # times the lone time of a request's class on the lock
P99_SAMPLES_MIN = 300  # of a class; with fewer, p95
PEERS = ("lock", "window", "framework")


@dataclass(frozen=True)
class Plan:
    """One command's measurements. Threads are torch's, of the peers; 0 is torch's own choice."""

    name: str
    model: str = "mini"
    device: str = "cpu"
    dtype: str = "float32"
    edges: tuple[int, ...] = (64, 128, 256)
    contestants: tuple[str, ...] = ("ours", "compiled", *PEERS)
    loads: tuple[str, ...] = (ALONE, "30", "60", "80", "95", BURST, DEADLINES)
    threads: tuple[int, ...] = (1, 2)
    repetitions: int = 5
    requests: int = 630  # of one repetition; five hold 315 of the largest size
    burst: int = 120
    alone_edge: int = 256
    alone: int = 20  # generations, one after another
    lone_times: int = 5
    load_seconds_max: float = float("inf")  # a Poisson load has fewer requests rather than last longer
    starts_together: bool = False  # quicker, and not for measuring: the contestants disturb each other
    seconds_max: float = float("inf")  # a contestant that would begin later is left out

    @property
    def shape(self) -> dict[str, object]:
        """What measurements must share to stand in one table."""
        names = ("name", "model", "device", "dtype", "edges", "requests", "burst", "alone_edge", "alone")
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}


QUICK = Plan(
    "quick",
    contestants=("ours", *PEERS),
    loads=("80", BURST),
    repetitions=2,
    requests=300,
    burst=60,
    lone_times=0,
)
FULL = Plan("full")
TINY = Plan(
    "tiny",
    edges=(64, 64, 128),
    contestants=("ours", "lock", "window"),
    loads=(ALONE, "80", BURST, DEADLINES),
    threads=(1,),
    starts_together=True,
    repetitions=1,
    requests=6,
    burst=5,
    alone_edge=128,
    alone=2,
    lone_times=1,
)
GPU = Plan(
    "gpu",
    model="geometry:klein-4b",
    device="cuda",
    dtype="bfloat16",
    edges=(512, 1024, 2048),
    contestants=("ours", "lock", "window"),
    loads=(ALONE, "80", BURST),
    threads=(0,),
    repetitions=1,
    requests=200,
    burst=20,
    alone_edge=1024,
    alone=10,
    lone_times=0,
    load_seconds_max=35.0,
    seconds_max=300.0,
)
