"""The contract's face on a stock pipeline: messages to orders, results to events, a server of many threads.

Knows no policy: lock.py and window.py say who goes when.
"""

import hashlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import torch
from klein.v1 import image_pb2, image_pb2_grpc

from benchmarks.peers.pipeline import Order, Stock, arguments

CHUNK_BYTES = 1024 * 1024
HANDLERS_MAX = 2048  # threads that wait; no request is refused
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(eq=False)
class Waiting:
    """A request in a handler's thread, and the events that another thread makes for it. None ends them."""

    order: Order
    is_wanted: Callable[[], bool]
    events: "queue.SimpleQueue[image_pb2.ImageEvent | None]" = field(default_factory=queue.SimpleQueue)
    entered: float = field(default_factory=time.monotonic)

    def preview(self, step: int, jpeg: bytes) -> None:
        self.events.put(preview(self.order, step, jpeg))

    def finish(self, png: bytes) -> None:
        for event in finished(self.order, png):
            self.events.put(event)


class Servicer(image_pb2_grpc.ImageServiceServicer):
    """Each request in a thread of its own that waits for `enter` to have it drawn."""

    def __init__(self, enter: Callable[[Waiting], None]):
        self._enter = enter

    def Generate(self, request: Any, context: Any) -> Iterator[image_pb2.ImageEvent]:
        return self._stream(request, (), context)

    def Edit(self, request: Any, context: Any) -> Iterator[image_pb2.ImageEvent]:
        return self._stream(request, tuple(r.image for r in request.references), context)

    def _stream(self, request: Any, references: tuple[bytes, ...], context: Any) -> Iterator[image_pb2.ImageEvent]:
        waiting = Waiting(order(request, references), context.is_active)
        self._enter(waiting)
        for number, event in enumerate(iter(waiting.events.get, None)):
            event.sequence = number
            yield event


def order(request: Any, references: tuple[bytes, ...]) -> Order:
    options = request.options
    return Order(request.prompt, options.width, options.seed, options.steps, references)


def preview(order: Order, step: int, jpeg: bytes) -> image_pb2.ImageEvent:
    small = image_pb2.Preview(
        step=step, total_steps=order.steps, format=image_pb2.PREVIEW_FORMAT_JPEG, width=order.edge // 8,
        height=order.edge // 8, data=jpeg,
    )  # fmt: skip
    return image_pb2.ImageEvent(preview=small)


def finished(order: Order, png: bytes) -> Iterator[image_pb2.ImageEvent]:
    header = image_pb2.ImageHeader(
        format=image_pb2.IMAGE_FORMAT_PNG, mime_type="image/png", width=order.edge, height=order.edge,
        size_bytes=len(png), sha256=hashlib.sha256(png).digest(),
    )  # fmt: skip
    yield image_pb2.ImageEvent(image_header=header)
    for offset in range(0, len(png), CHUNK_BYTES):
        chunk = image_pb2.ImageChunk(offset=offset, data=png[offset : offset + CHUNK_BYTES])
        yield image_pb2.ImageEvent(image_chunk=chunk)
    yield image_pb2.ImageEvent(completed=image_pb2.Completed())


def serve(policy: Callable[[Stock], Callable[[Waiting], None]]) -> None:
    """Load, then serve until SIGTERM."""
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    stock = Stock(given.model, given.device, given.dtype)
    server = grpc.server(
        ThreadPoolExecutor(HANDLERS_MAX), options=[("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    )
    image_pb2_grpc.add_ImageServiceServicer_to_server(Servicer(policy(stock)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    print(f"serving on 127.0.0.1:{port}", flush=True)
    stopping.wait()
    server.stop(None).wait()
    os._exit(0)  # a daemon thread inside torch would abort an orderly exit
