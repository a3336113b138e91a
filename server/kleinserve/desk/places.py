"""How many requests may wait, and how much they may hold: running sums, so that a refusal costs nothing."""

from collections.abc import Callable

from kleinserve.errors import QueueFull


class Places:
    """Bounds on requests from their arrival to their first step. `busy_seconds` says when to try again."""

    def __init__(self, requests_max: int, bytes_max: int, busy_seconds: Callable[[], float]):
        self._requests_max, self._bytes_max, self._busy_seconds = requests_max, bytes_max, busy_seconds
        self.requests = self.bytes = 0

    def take(self, held_bytes: int) -> "Place":
        """A place for a request that holds so many bytes as it came. Raises: QueueFull."""
        if self.requests >= self._requests_max:
            self._refuse(f"{self.requests} requests are waiting, the limit is {self._requests_max}")
        self._fit(held_bytes)
        return Place(self, held_bytes)

    def _fit(self, more_bytes: int) -> None:
        if self.requests and self.bytes + more_bytes > self._bytes_max:
            held = f"waiting requests hold {self.bytes} bytes"
            self._refuse(f"{held}, {more_bytes} more would pass the limit {self._bytes_max}")

    def _refuse(self, said: str) -> None:
        raise QueueFull(said, retry_seconds=max(1.0, self._busy_seconds()))


class Place:
    """One request's place, until it is left."""

    def __init__(self, places: Places, held_bytes: int):
        self._places, self._bytes = places, held_bytes
        places.requests += 1
        places.bytes += held_bytes

    def grow(self, more_bytes: int) -> None:
        """Its references are decoded. Raises: QueueFull, where others hold too much; alone it always fits."""
        places = self._places
        if places.requests > 1:
            places._fit(more_bytes)
        self._bytes += more_bytes
        places.bytes += more_bytes

    def leave(self) -> None:
        """It starts, or has ended; leaving twice changes nothing."""
        places, self._places = self._places, _NOWHERE
        places.requests -= 1
        places.bytes -= self._bytes


_NOWHERE = Places(0, 0, lambda: 0.0)
