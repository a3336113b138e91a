"""kill -9 under load, again and again: what callers received against what the ledger says.

    python -m tests.crash.run [--sqlite-kills 100] [--postgresql-kills 20] [--seconds S] [--seed N]

Callers of kleinclient ask all the time: with keys, with keys and DETACH (they leave and come back), and without keys.
The server is killed at a random moment and started again on the same database, which is looked at each time.
Exit code 1 where a promise was broken; the report says which.
"""

import argparse
import asyncio
import math
import random
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kleinclient import Accepted, AsyncClient, Image, KleinError, ResultGone, Retry

from tests.e2e.conftest import killed
from tests.usage.postgres import Postgres
from tests.usage.some import rows

KINDS = ("keyed",) * 5 + ("detached",) * 2 + ("plain",) * 3
IMAGES_MAX = 6  # received between a start and a kill, and a moment more
KILL_SECONDS = (0.5, 10.0)  # that moment, and how long those images are waited for
ON_ITS_WAY_SECONDS = 3.0  # between a commit and the kill that its image did not outlive, on a busy machine
LAST_SECONDS = 240.0  # after the last start, until every caller has what he wanted
SETTINGS = {"STEP_TOKENS_MAX": "64", "INTAKE_WORKERS": "1", "KEPT_SECONDS": "20"}
QUICK = Retry(attempts=10_000, patience=math.inf, backoff=0.1, backoff_max=0.5, burst=10_000, per_second=10_000)


@dataclass
class Request:
    """One thing that a caller wanted, by its tag: the digests of what came, and what became of it."""

    kind: str
    size: tuple[int, int]
    key: str
    tag: str = field(default_factory=lambda: str(uuid.uuid4()))
    digests: list[int] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)
    gone: int = 0
    error: str = ""


@dataclass
class Crash:
    """A run on one database: `kills` are wall clock times in microseconds, `broken` the promises that were not kept."""

    url: str
    chance: random.Random
    requests: list[Request] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds_to_start: list[float] = field(default_factory=list)
    is_over: bool = False

    async def run(self, kills: int, seconds: float) -> None:
        """Kill the server so often, or for so long; let every caller come to an end, and compare."""
        ends = time.monotonic() + seconds
        port = _free_port()
        client = AsyncClient(f"127.0.0.1:{port}", retry=QUICK)
        callers: list[asyncio.Task[None]] = []
        with tempfile.TemporaryDirectory() as cache:
            while not self.is_over:
                with ExitStack() as stack:
                    begin = time.monotonic()
                    settings = {f"KLEINSERVE_{name}": value for name, value in SETTINGS.items()}
                    settings |= {"KLEINSERVE_LEDGER": self.url, "XDG_CACHE_HOME": cache}
                    await asyncio.to_thread(stack.enter_context, killed("--port", str(port), **settings))
                    self.seconds_to_start.append(time.monotonic() - begin)
                    self._look()
                    callers = callers or [asyncio.create_task(self._caller(client, kind)) for kind in KINDS]
                    if len(self.kills) < kills and time.monotonic() < ends:
                        await self._moment()
                        self.kills.append(time.time_ns() // 1000)  # leaving the context kills
                        print(f"kill {len(self.kills)}, {len(self.requests)} requests", file=sys.stderr, flush=True)
                        continue
                    self.is_over = True
                    async with asyncio.timeout(LAST_SECONDS):
                        await asyncio.gather(*callers)
                    await client.close()
        self._look()
        self._compare()

    async def _moment(self) -> None:
        """Any moment: a server on a slow machine, too, has done something by then."""
        wanted = self.received + self.chance.randint(0, IMAGES_MAX)
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS[1]):
                while self.received < wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        await asyncio.sleep(self.chance.uniform(0.0, KILL_SECONDS[0]))

    @property
    def received(self) -> int:
        return sum(len(request.digests) for request in self.requests)

    async def _caller(self, client: AsyncClient, kind: str) -> None:
        while not self.is_over:
            size = self.chance.choice([(64, 64), (64, 64), (128, 64)])
            request = Request(kind, size, "" if kind == "plain" else str(uuid.uuid4()))
            self.requests.append(request)
            if kind == "detached":
                await self._leave(client, request)
            await self._ask(client, request)
            if request.key and self.chance.random() < 0.5:
                await self._ask(client, request)

    async def _leave(self, client: AsyncClient, request: Request) -> None:
        """Ask, and go away as soon as the request is accepted."""
        with suppress(KleinError):
            async for event in self._stream(client, request):
                if isinstance(event, Accepted):
                    request.seeds.add(event.seed)
                    break

    async def _ask(self, client: AsyncClient, request: Request) -> None:
        try:
            image: Image = await self._stream(client, request).result()
        except ResultGone:
            request.gone += 1
        except KleinError as error:
            request.error = f"{error.reason or error.status}: {error}"
            if request.key:
                self.broken.append(f"{request.kind} {request.tag}: no image by its key: {request.error}")
        else:
            request.digests.append(hash(image.data))

    def _stream(self, client: AsyncClient, request: Request) -> Any:
        return client.generate(
            "a red circle on a blue background",
            size=request.size,
            steps=2,
            idempotency_key=request.key,
            client_tag=request.tag,
            detach=request.kind == "detached",
        )

    def _look(self) -> None:
        """The database is whole, and its totals are its records'."""
        if self.url.startswith("sqlite") and (said := rows(self.url, "PRAGMA integrity_check")) != [("ok",)]:
            self.broken.append(f"integrity after kill {len(self.kills)}: {said}")
        day = 86_400_000_000
        sums = "sum(requests), sum(images), sum(cost_microusd)"
        totals = f"SELECT {sums} FROM total WHERE span_microseconds = {day}"
        of_records = (
            "SELECT count(*), sum(CASE WHEN billable THEN 1 ELSE 0 END), "
            "sum(CASE WHEN billable THEN cost_microusd ELSE 0 END) FROM record"
        )
        both = [[int(each or 0) for each in rows(self.url, statement)[0]] for statement in (totals, of_records)]
        # The server writes between the two: what was read first is at most what was read last.
        if any(first > last for first, last in zip(*both, strict=True)) or (self.is_over and both[0] != both[1]):
            self.broken.append(f"after kill {len(self.kills)}: totals {both[0]}, records {both[1]}")

    def _compare(self) -> None:
        statement = "SELECT client_tag, end_microseconds FROM record WHERE billable"
        ends: dict[str, list[int]] = {}
        for tag, end in rows(self.url, statement):
            ends.setdefault(tag, []).append(int(end))
        for request in self.requests:
            billed, name = ends.get(request.tag, []), f"{request.kind} {request.tag}"
            if len(billed) > 1:
                self.broken.append(f"{name}: billed {len(billed)} times")
            if request.digests and not billed:
                self.broken.append(f"{name}: received, and not recorded")
            if len(set(request.digests)) > 1:
                self.broken.append(f"{name}: two pictures under one key")
            if request.key and not request.digests:
                self.broken.append(f"{name}: billed {len(billed)} times, gone {request.gone} times, never received")
            if billed and not request.digests and not any(self._is_near(billed[0], kill) for kill in self.kills):
                self.broken.append(f"{name}: billed while no kill was near, and not received: {request.error}")

    @staticmethod
    def _is_near(end: int, kill: int) -> bool:
        return 0 <= kill - end <= ON_ITS_WAY_SECONDS * 1e6

    def report(self) -> str:
        """What was done and found, in lines."""
        counts = Counter(request.kind for request in self.requests)
        received = Counter(request.kind for request in self.requests if request.digests)
        twice = sum(len(request.digests) > 1 for request in self.requests)
        billed = rows(self.url, "SELECT count(*) FROM record WHERE billable")[0][0]
        on_the_way = int(billed) - sum(received.values())
        starts = sorted(self.seconds_to_start)
        lines = [
            f"{self.url.partition(':')[0]}: {len(self.kills)} kills, start {starts[len(starts) // 2]:.1f} s (median)",
            *(f"  {kind}: {counts[kind]} requests, {received[kind]} received whole" for kind in dict.fromkeys(KINDS)),
            f"  fetched again by their keys: {twice}; gone then: {sum(request.gone for request in self.requests)}",
            f"  billable records: {billed}; of images on their way at a kill, without a key: {on_the_way}",
            *(f"  BROKEN {said}" for said in self.broken),
        ]
        return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def crash(url: str, kills: int, seed: int, seconds: float = math.inf) -> Crash:
    """A whole run."""
    made = Crash(url, random.Random(seed))
    await made.run(kills, seconds)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sqlite-kills", type=int, default=100)
    parser.add_argument("--postgresql-kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no further kill of a database after so long")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args(arguments)
    runs = []
    print(f"seed {given.seed}", flush=True)
    if given.sqlite_kills:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'usage.db'}"
            runs.append(asyncio.run(crash(url, given.sqlite_kills, given.seed, given.seconds)))
            print(runs[-1].report(), flush=True)
    if given.postgresql_kills:
        postgres = Postgres()
        try:
            runs.append(asyncio.run(crash(postgres.database(), given.postgresql_kills, given.seed, given.seconds)))
            print(runs[-1].report(), flush=True)
        finally:
            postgres.close()
    return 1 if any(run.broken for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
