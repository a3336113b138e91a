"""The stock pipeline in LitServe: its batching, its streaming, its HTTP.

LitServe batches whatever comes within the window, so a batch is sorted by shape inside. Each answer is a stream of
lines [step, base64]: step 0 is the image. The port answers once the worker has loaded.
"""

import base64
import json
import queue
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import litserve
import torch

from benchmarks.peers.pipeline import Order, Stock, arguments
from benchmarks.peers.window import BATCH_MAX, WINDOW_SECONDS, shape

IMAGE = 0
Line = tuple[int, bytes]


class Drawer(litserve.LitAPI):
    """One worker: a batch of orders in, previews and images out as they come."""

    def __init__(self, model: str, device: str, dtype: str, threads: int):
        super().__init__(max_batch_size=BATCH_MAX, batch_timeout=WINDOW_SECONDS, stream=True)
        self._given, self._threads = (model, device, dtype), threads

    def setup(self, device: str) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        self._stock = Stock(*self._given)

    def decode_request(self, request):  # no types: FastAPI would read them as those of the wire
        references = tuple(base64.b64decode(reference) for reference in request["references"])
        return Order(request["prompt"], request["width"], request["seed"], request["steps"], references)

    def batch(self, orders: list[Order]) -> list[Order]:
        return orders

    def unbatch(self, output: Iterator[list[Line | None]]) -> Iterator[list[Line | None]]:
        yield from output

    def predict(self, orders: list[Order]) -> Iterator[list[Line | None]]:
        fresh: queue.SimpleQueue[tuple[int, Line] | None] = queue.SimpleQueue()
        threading.Thread(target=self._draw, args=(orders, fresh.put), daemon=True).start()
        for i, line in iter(fresh.get, None):
            yield [line if k == i else None for k in range(len(orders))]

    def _draw(self, orders: list[Order], tell: Any) -> None:
        try:
            for group in batches(orders):
                images = self._stock.draw(
                    [orders[i] for i in group], lambda k, *line, of=group: tell((of[k], line)), lambda: True
                )
                for i, image in zip(group, images, strict=True):
                    tell((i, (IMAGE, image)))
        finally:
            tell(None)

    def encode_response(self, output):
        for lines in output:
            yield [json.dumps([line[0], base64.b64encode(line[1]).decode()]) + "\n" if line else "" for line in lines]


def batches(orders: list[Order]) -> Iterator[list[int]]:
    """Places of orders that can share a call; those with references go alone."""
    numbered = sorted(range(len(orders)), key=lambda i: shape(orders[i]))
    for (*_, has_references), of in groupby(numbered, key=lambda i: shape(orders[i])):
        found = list(of)
        yield from ([i] for i in found) if has_references else [found]


def main() -> None:
    given = arguments()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    drawer = Drawer(given.model, given.device, given.dtype, given.threads)
    server = litserve.LitServer(drawer, accelerator="cpu", timeout=False)
    threading.Thread(target=announce, args=(port,), daemon=True).start()
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def announce(port: int) -> None:
    """Say where it serves once it is healthy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=5):
                return print(f"serving on http://127.0.0.1:{port}/predict", flush=True)
        except OSError:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
