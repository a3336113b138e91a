"""What people write first: the stock pipeline behind a lock, one request at a time, previews from its callback."""

import threading
from collections.abc import Callable

from benchmarks.peers.front import Waiting, serve
from benchmarks.peers.pipeline import Stock


def behind_lock(stock: Stock) -> Callable[[Waiting], None]:
    lock = threading.Lock()

    def draw(waiting: Waiting) -> None:
        try:
            with lock:
                if waiting.is_wanted():
                    images = stock.draw([waiting.order], lambda _, *p: waiting.preview(*p), waiting.is_wanted)
                    waiting.finish(images[0])
        finally:
            waiting.events.put(None)

    return lambda waiting: threading.Thread(target=draw, args=(waiting,), daemon=True).start()


if __name__ == "__main__":
    serve(behind_lock)
