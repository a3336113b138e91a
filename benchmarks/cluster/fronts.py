"""Ways to reach several servers, and what one image request does by each of them."""

import io
import json
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count

import grpc
from klein.v1 import image_pb2, image_pb2_grpc
from kleinclient import Client
from PIL import Image

SERVICE = "klein.v1.ImageService"
DEADLINE_SECONDS = 240.0
EDIT_EVERY = 20
SMALL = {"size": (64, 64), "steps": 4}
Draw = Callable[[], str]  # makes one image; how it failed, "" if it did not

ROUND_ROBIN = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE}}
RETRIED = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
METHODS = [{"name": [{"service": SERVICE}], "retryPolicy": RETRIED}]


def addresses(targets: Sequence[str]) -> str:
    """Several servers of this machine as one target; elsewhere it is dns:///NAME:PORT."""
    return f"ipv4:{','.join(targets)}"


@contextmanager
def stub(target: str, *options: tuple[str, object]) -> Iterator[Draw]:
    """The generated stub, which never tries again by itself unless a retry policy says so; some are large edits."""
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0), *options]) as channel:
        images, turns, file = image_pb2_grpc.ImageServiceStub(channel), count(), _large()

        def draw() -> str:
            made = image_pb2.ImageOptions(width=64, height=64, steps=4, client_tag=uuid.uuid4().hex)
            try:
                if next(turns) % EDIT_EVERY == 0:
                    references = [image_pb2.Reference(image=file)]
                    edit = image_pb2.EditRequest(prompt="make it green", references=references, options=made)
                    *_, last = images.Edit(edit, timeout=DEADLINE_SECONDS)
                else:
                    generation = image_pb2.GenerateRequest(prompt="a red circle", options=made)
                    *_, last = images.Generate(generation, timeout=DEADLINE_SECONDS)
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"
            return "" if last.HasField("completed") else "no completed"

        yield draw


def _large() -> bytes:
    """A PNG of 2 MiB: longer than what proxies keep of a request by default."""
    file = io.BytesIO()
    Image.frombytes("RGB", (840, 840), random.Random(0).randbytes(3 * 840 * 840)).save(file, "PNG")
    return file.getvalue()


def bare(target: str) -> AbstractContextManager[Draw]:
    return stub(target, ("grpc.enable_retries", 0))


def round_robin(targets: Sequence[str], *, backoff_seconds: float | None) -> AbstractContextManager[Draw]:
    """gRPC's own balancing, with health checks and a retry policy; None: its own reconnect backoff."""
    config = json.dumps(ROUND_ROBIN | {"methodConfig": METHODS})
    options: list[tuple[str, object]] = [("grpc.service_config", config)]
    if backoff_seconds is not None:
        milliseconds = int(backoff_seconds * 1000)
        options += [(f"grpc.{which}_reconnect_backoff_ms", milliseconds) for which in ("initial", "min", "max")]
    return stub(addresses(targets), *options)


@contextmanager
def library(target: str) -> Iterator[Draw]:
    """kleinclient: a key for every request, taken up again where a stream breaks."""
    with Client(target) as klein:

        def draw() -> str:
            try:
                klein.generate("a red circle", timeout=DEADLINE_SECONDS, **SMALL).result()
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return ""

        yield draw


class Load:
    """Callers that draw one image after another until they are stopped."""

    def __init__(self, draw: Draw, callers: int):
        self._draw, self._stop = draw, threading.Event()
        self._lock = threading.Lock()
        self.drawn, self.failures = 0, list[str]()
        self._threads = [threading.Thread(target=self._run) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            failure = self._draw()
            with self._lock:
                self.drawn += 1
                if failure:
                    self.failures.append(failure)
            if failure:
                self._stop.wait(0.25)  # the same pace as what is drawn: a failure takes no time

    def until(self, drawn: int) -> None:
        """Go on until so many requests have ended, then stop."""
        while self.drawn < drawn:
            self._stop.wait(0.05)
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
