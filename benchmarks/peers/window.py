"""The next thing people write: requests of one shape that come within a window share a pipeline call.

Edits go alone: the stock pipeline gives every image of a call the same references.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from benchmarks.peers.front import Waiting, serve
from benchmarks.peers.pipeline import Order, Stock

WINDOW_SECONDS = 0.02  # what a lone request waits for company
BATCH_MAX = 4  # more at the largest size is slower for each on a CPU (PERF.md)


def in_batches(stock: Stock) -> Callable[[Waiting], None]:
    """A thread that takes the oldest request and those of its shape, oldest first."""
    waiting: deque[Waiting] = deque()
    arrived = threading.Condition()

    def taken() -> list[Waiting]:
        with arrived:
            arrived.wait_for(lambda: waiting)
            until = waiting[0].entered + WINDOW_SECONDS
            while len(batch := _batch(waiting)) < BATCH_MAX and not batch[0].order.references:
                if not arrived.wait(until - time.monotonic()):
                    break
            for one in batch:
                waiting.remove(one)
        return batch

    def run() -> None:
        while True:
            batch = taken()
            try:
                draw([one for one in batch if one.is_wanted()])
            finally:
                for one in batch:
                    one.events.put(None)

    def draw(wanted: list[Waiting]) -> None:
        if wanted:
            images = stock.draw(
                [one.order for one in wanted],
                lambda i, *preview: wanted[i].preview(*preview),
                lambda: any(one.is_wanted() for one in wanted),
            )
            for one, image in zip(wanted, images, strict=True):
                one.finish(image)

    def enter(one: Waiting) -> None:
        with arrived:
            waiting.append(one)
            arrived.notify()

    threading.Thread(target=run, daemon=True).start()
    return enter


def _batch(waiting: deque[Waiting]) -> list[Waiting]:
    first = waiting[0].order
    if first.references:
        return [waiting[0]]
    return [one for one in waiting if shape(one.order) == shape(first)][:BATCH_MAX]


def shape(order: Order) -> tuple[int, int, bool]:
    """What orders of one pipeline call must share; those with references go alone."""
    return order.edge, order.steps, bool(order.references)


if __name__ == "__main__":
    serve(in_batches)
