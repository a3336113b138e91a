"""What is done to the servers while callers draw, and what came of it."""

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median, quantiles

import grpc
import psycopg
from klein.v1 import image_pb2, image_pb2_grpc
from kleinclient import Accepted, Client

from benchmarks.cluster.fronts import SMALL, Draw, Load
from tests.replicas.cluster import Envoy, Server

CALLERS = 3  # at once: one server alone can carry them
OPTIONS = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True)
class Result:
    """`ok` of `asked`, and how the others failed."""

    asked: int
    failures: Sequence[str]
    seconds: float

    def __str__(self) -> str:
        said = "; ".join(f"{count} × {what[:90]}" for what, count in Counter(self.failures).most_common(3))
        return f"{self.asked - len(self.failures)} of {self.asked} in {self.seconds:.0f} s{': ' if said else ''}{said}"


def roll(draw: Draw, servers: Sequence[Server], envoy: Envoy, requests: int) -> Result:
    """Restart one server after the other by SIGTERM, each when the one before is found healthy again, under load."""
    begin, load = time.monotonic(), Load(draw, CALLERS)
    try:
        for server in servers:
            server.stop()
            server.start()
            envoy.until_healthy(server)
        load.until(requests)
    finally:
        load.stop()
    return Result(load.drawn, load.failures, time.monotonic() - begin)


def cancel(target: str, servers: Sequence[Server], count: int) -> int:
    """How many of so many cancels, each in the middle of a drawing, arrive at the server that draws."""
    before = sum(server.counted("klein_cancelled_total") for server in servers)
    with grpc.insecure_channel(target, OPTIONS) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        for _ in range(count):
            options = image_pb2.ImageOptions(width=64, height=64, steps=50)
            running = stub.Generate(image_pb2.GenerateRequest(prompt="a red circle", options=options))
            for event in running:
                if event.HasField("progress"):
                    break
            running.cancel()
    until = time.monotonic() + 30
    while (arrived := sum(server.counted("klein_cancelled_total") for server in servers) - before) < count:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return int(arrived)


def kill(target: str, victim: Server, ledger: str, count: int) -> tuple[Result, Counter[int]]:
    """Kill a server when so many keyed requests are admitted; how many bills each of them has."""
    tags = [uuid.uuid4().hex for _ in range(count)]
    begin = time.monotonic()
    with Client(target) as klein, ThreadPoolExecutor(count) as pool:
        admitted: list[str] = []

        def draw(tag: str) -> str:
            try:
                stream = klein.generate("a red circle", size=(64, 64), steps=50, client_tag=tag, timeout=300)
                for event in stream:
                    if isinstance(event, Accepted):
                        admitted.append(tag)
                stream.result()
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return ""

        drawing = [pool.submit(draw, tag) for tag in tags]
        while len(set(admitted)) < count // 2:
            time.sleep(0.01)
        victim.kill()
        failures = [failure for each in drawing if (failure := each.result())]
    with psycopg.connect(ledger.replace("+psycopg", "")) as connection:
        rows = connection.execute(
            "SELECT client_tag, count(*) FROM record WHERE billable AND client_tag = ANY(%s) GROUP BY client_tag",
            [tags],
        )
        bills = dict(rows.fetchall())
    return Result(count, failures, time.monotonic() - begin), Counter(bills.get(tag, 0) for tag in tags)


def forwarded(servers: Sequence[Server], pairs: int) -> tuple[str, str]:
    """Milliseconds of a replay at the key's owner and at the other server, which passes it on: median and quartiles."""
    seconds: tuple[list[float], list[float]] = [], []
    first, second = servers
    with Client(first.target) as here, Client(second.target) as there:
        for _ in range(pairs):
            key = uuid.uuid4().hex
            here.generate("a red circle", idempotency_key=key, seed=1, **SMALL).result()
            for client, times in zip((here, there), seconds, strict=True):
                begin = time.perf_counter()
                client.generate("a red circle", idempotency_key=key, seed=1, **SMALL).result()
                times.append((time.perf_counter() - begin) * 1000)
    own, passed = (f"{median(each):.1f} ({quantiles(each)[0]:.1f}–{quantiles(each)[2]:.1f})" for each in seconds)
    return own, passed
