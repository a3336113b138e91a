"""What is done to a cluster under load. The tests do it with few requests, `python -m tests.ray` with many."""

import asyncio
import io
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np
import psutil
from klein.v1 import image_pb2, image_pb2_grpc
from kleinclient import Client
from kleinserve.backend.ray import ENVIRONMENT
from PIL import Image

from tests.e2e.calls import NARROW, generate, opened, until
from tests.ray.cluster import START_SECONDS, Actor, Cluster

Stub = image_pb2_grpc.ImageServiceStub
AT_ONCE = 10
IDLE_SHARE = 0.2  # of a core: less, and a replica draws nothing
DIFFERENCE_MAX = 2
RESUMED = "another one draws"
ANOTHER = {"num_cpus": 0.5, "runtime_env": {"env_vars": ENVIRONMENT}}  # what a replica needs: Ray makes new ones
LATENT = image_pb2.PreviewOptions(format=image_pb2.PREVIEW_FORMAT_LATENT)
LATENT_BYTES = 128 * 16 * 16 * 2  # of 256 × 256 pixels


@dataclass
class Tally:
    """Streams that ended, by status; what they gave, by seed."""

    statuses: list[str] = field(default_factory=list)
    images: dict[int, list[np.ndarray]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)  # what told a caller what it knew

    @property
    def difference(self) -> int:
        """The largest between images of the same seed, of 255: company in a step may change the last bit."""
        each = (np.abs(image - images[0]).max() for images in self.images.values() for image in images)
        return int(max(each, default=0))

    @property
    def failed(self) -> list[str]:
        return [status for status in self.statuses if status != "OK"]


async def _stream(channel: grpc.aio.Channel, seed: int, steps: int, tally: Tally, begun: Callable[[], None]) -> None:
    """One request, without a second try."""
    file, told = b"", {"progress": 0, "preview": 0}
    try:
        async for event in Stub(channel).Generate(generate(seed=seed, steps=steps)):
            kind = event.WhichOneof("event")
            if kind in told:
                step = getattr(event, kind).step
                if step < told[kind] + (kind == "preview"):  # the same progress is told again after 10 s
                    tally.repeated.append(f"{kind} {step} after {told[kind]}")
                told[kind] = step
                begun()
            file += event.image_chunk.data
    except grpc.aio.AioRpcError as error:
        tally.statuses.append(f"{error.code().name}: {error.details()}")
    else:
        tally.statuses.append("OK")
        with Image.open(io.BytesIO(file)) as picture:
            tally.images.setdefault(seed, []).append(np.asarray(picture.convert("RGBA")).astype(int))


class Load:
    """Requests at the fronts, AT_ONCE at a time. `has_begun` is set once so many draw."""

    def __init__(self, targets: Sequence[str], steps: int):
        self.tally, self.has_begun = Tally(), asyncio.Event()
        self._targets, self._steps, self._drawing = targets, steps, set[int]()

    async def run(self, is_enough: Callable[[int], bool]) -> Tally:
        """Ask until `is_enough` of the number that was asked."""
        numbers = itertools.count()
        channels = [opened(target) for target in self._targets]

        async def ask() -> None:
            while not is_enough(number := next(numbers)):
                channel = channels[number % len(channels)]
                await _stream(channel, number % 5, self._steps, self.tally, lambda: self._begun(number))
                self._drawing.discard(number)

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        for channel in channels:
            await channel.close()
        return self.tally

    def _begun(self, number: int) -> None:
        self._drawing.add(number)
        if len(self._drawing) >= AT_ONCE // 2:
            self.has_begun.set()


async def cancels(targets: Sequence[str], count: int) -> int:
    """So many requests that would run for minutes are cancelled, half while they wait, half while they run; returns how
    many of them ended as cancelled.
    """
    slots, ended = asyncio.Semaphore(AT_ONCE), 0

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        nonlocal ended
        async with slots:
            call = Stub(channel).Generate(generate(seed=number, steps=5000))
            await until(call, "progress" if number % 2 else "accepted")
            ended += call.cancel()

    async with opened(targets[0]) as here, opened(targets[-1]) as there:
        await asyncio.gather(*(one(there if number % 2 else here, number) for number in range(count)))
    return ended


async def until_idle(actors: Sequence[Actor], seconds: float = 30.0) -> float:
    """Wait until none of them computes any more; returns after how long. Raises: TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        for process in [psutil.Process(actor.pid) for actor in actors]:
            process.cpu_percent()
            await asyncio.sleep(0.5)
            while process.cpu_percent() > 100 * IDLE_SHARE:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
    return time.monotonic() - began


def resumed(cluster: Cluster) -> int:
    """How many requests the fronts have had drawn again."""
    return sum(cluster.log(front).count(RESUMED) for front in cluster.actors("Front"))


async def replica_killed(cluster: Cluster, count: int, steps: int = 40) -> tuple[Tally, int]:
    """A replica is killed while it draws; returns what became of `count` requests, and how many were drawn again."""
    before, victim = resumed(cluster), cluster.actors("Replica")[0]
    load = Load(cluster.targets(), steps)
    running = asyncio.create_task(load.run(lambda number: number >= count))
    await load.has_begun.wait()
    victim.kill()
    tally = await running
    return tally, resumed(cluster) - before


async def rolled(cluster: Cluster, count: int, steps: int = 4) -> tuple[Tally, float]:
    """Both replicas are replaced under load; returns what became of at least `count` requests, and the seconds."""
    old = {actor.name for actor in cluster.actors("Replica")}
    is_over, began = asyncio.Event(), time.monotonic()
    load = Load(cluster.targets(), steps)
    running = asyncio.create_task(load.run(lambda number: number >= count and is_over.is_set()))
    await load.has_begun.wait()
    cluster.deploy(options=[{"name": "Replica", "ray_actor_options": ANOTHER}])
    await asyncio.to_thread(cluster.until_gone, "Replica", old, 2)
    seconds = time.monotonic() - began
    is_over.set()
    return await running, seconds


async def head_lost(cluster: Cluster, seconds: float) -> Tally:
    """The head's GCS is away for so long under load; returns what became of the requests, before, while and after.

    The last trial of a cluster: its dashboard may not come back.
    """
    is_over = asyncio.Event()
    load = Load(cluster.targets(), steps=4)
    running = asyncio.create_task(load.run(lambda number: is_over.is_set()))
    await load.has_begun.wait()
    await asyncio.to_thread(cluster.lose_head, seconds)
    await asyncio.sleep(seconds)
    is_over.set()
    return await running


async def scaled(cluster: Cluster) -> float:
    """Load brings a second replica; returns after how many seconds."""
    old = {actor.name for deployment in ("Front", "Replica") for actor in cluster.actors(deployment)}
    cluster.deploy(replicas="1:2")
    for deployment, count in (("Replica", 1), ("Front", 2)):
        await asyncio.to_thread(cluster.until_gone, deployment, old, count)
    is_over, began = asyncio.Event(), time.monotonic()
    load = Load(cluster.targets(), steps=40)
    running = asyncio.create_task(load.run(lambda number: is_over.is_set()))
    await load.has_begun.wait()
    await asyncio.to_thread(cluster.until_gone, "Replica", set(), 2)
    is_over.set()
    assert (await running).failed == []
    return time.monotonic() - began


async def front_killed(cluster: Cluster, callers: int) -> tuple[Tally, Tally, int]:
    """A front is killed; returns what became of plain streams of both, and how many of kleinclient's got an image."""
    first, second = cluster.actors("Front")
    targets = cluster.target(first), cluster.target(second)
    loads = [Load([target], steps=150) for target in targets]
    running = [asyncio.create_task(load.run(lambda number: number >= AT_ONCE)) for load in loads]
    pool, begun = ThreadPoolExecutor(callers), asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def draw() -> int:
        with Client(f"ipv4:{targets[0]},{targets[1]}") as klein:
            stream = klein.generate("a circle", size=(64, 64), steps=150, timeout=START_SECONDS)
            for event in stream:
                if type(event).__name__ == "Accepted":
                    loop.call_soon_threadsafe(begun.release)
            return len(stream.result().data)

    drawing = [loop.run_in_executor(pool, draw) for _ in range(callers)]
    for _ in range(callers):
        await begun.acquire()
    for load in loads:
        await load.has_begun.wait()
    first.kill()
    tallies = await asyncio.gather(*running)
    sizes = await asyncio.gather(*drawing)
    await asyncio.to_thread(cluster.until_gone, "Front", {first.name}, 2)
    return tallies[0], tallies[1], sum(size > 0 for size in sizes)


@dataclass(frozen=True)
class Stalled:
    """Bytes that a reader did not read, and by how much front and replicas grew meanwhile."""

    unread: int
    front: int
    replicas: int


async def stalled(cluster: Cluster, steps: int, readers: int = 2) -> Stalled:
    """Readers ask for a large preview of each step and read nothing, until their images are made."""
    front, replicas = cluster.actors("Front")[0], cluster.actors("Replica")
    async with opened(cluster.target(front), *NARROW) as channel:
        await _unread(channel, 8, readers)  # whatever the first of their kind keep
        await until_idle(replicas)
        before = front.memory, sum(replica.memory for replica in replicas)
        calls = await _unread(channel, steps, readers)
        await until_idle(replicas, seconds=START_SECONDS)
        after = front.memory, sum(replica.memory for replica in replicas)
        for call in calls:
            call.cancel()
    return Stalled(readers * steps * LATENT_BYTES, after[0] - before[0], after[1] - before[1])


async def _unread(channel: grpc.aio.Channel, steps: int, readers: int) -> list["grpc.aio.UnaryStreamCall"]:
    asked = generate(size=(256, 256), steps=steps, preview=LATENT)
    calls = [Stub(channel).Generate(asked) for _ in range(readers)]
    for call in calls:
        await until(call, "progress")
    return calls


@dataclass(frozen=True)
class Later:
    """How many milliseconds later something comes by Ray than from a local server: pair by pair."""

    pairs: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.pairs)

    def __str__(self) -> str:
        low, _, high = statistics.quantiles(self.pairs, n=4)
        return f"median {self.median:.1f} ms (quartiles {low:.1f} to {high:.1f}, {len(self.pairs)} pairs)"


async def latency(local: str, remote: str, pairs: int) -> tuple[Later, Later]:
    """The first preview and the whole of one request at a time, here and there in turn."""
    async with opened(local) as here, opened(remote) as there:
        for channel in (here, there):
            await _timed(channel)
        times = [(await _timed(here), await _timed(there)) for _ in range(pairs)]
    return (
        Later([1000 * (far[0] - near[0]) for near, far in times]),
        Later([1000 * (far[1] - near[1]) for near, far in times]),
    )


async def _timed(channel: grpc.aio.Channel) -> tuple[float, float]:
    began = time.perf_counter()
    call = Stub(channel).Generate(generate())
    await until(call, "preview")
    first = time.perf_counter() - began
    await until(call, "completed")
    return first, time.perf_counter() - began
