"""Finished images kept for their keys: bounded in bytes, by caller, and in time. On the event loop; nothing scans."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kleinserve.desk.job import Job
from kleinserve.errors import QueueFull

_CALLER_SHARE = 8  # a caller keeps at most this part of all


@dataclass(eq=False)
class Kept:
    """A place on the shelf: reserved for a detached job until `is_finished`, then its image's."""

    caller: str
    job: Job
    held_bytes: int
    since: float
    is_finished: bool = False
    is_delivered: bool = False


@dataclass
class _Own:
    """What one caller has there, the oldest first."""

    bytes: int = 0
    delivered: dict[Kept, None] = field(default_factory=dict)
    undelivered: dict[Kept, None] = field(default_factory=dict)


class Shelf:
    """Kept results. Delivered ones make room before undelivered ones, then the oldest.

    Undelivered ones make room for their own caller's images alone, and a reservation for nothing: nobody's attack costs
    another an image that was not fetched yet. `on_evict` is told what has gone.
    """

    def __init__(
        self,
        bytes_max: int,
        seconds: float,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
        on_evict: Callable[[Kept], None],
    ):
        self._bytes_max, self._seconds, self._clock, self._on_evict = bytes_max, seconds, clock, on_evict
        self._call_later, self._is_timed = call_later, False
        self._own: defaultdict[str, _Own] = defaultdict(_Own)
        self._delivered: dict[Kept, None] = {}
        self._by_age: dict[Kept, None] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def reserve(self, caller: str, job: Job, held_bytes: int) -> Kept:
        """Room for a detached job's image. Raises: QueueFull where what is not fetched yet leaves none."""
        if not self._make_room(caller, held_bytes, may_lose=False):
            share = self._bytes_max // _CALLER_SHARE
            said = f"{held_bytes} bytes do not fit beside what is kept; at most {self._bytes_max}, {share} a caller"
            raise QueueFull(said, retry_seconds=max(1.0, self._seconds / 10))
        return self._put(Kept(caller, job, held_bytes, self._clock()))

    def keep(self, caller: str, job: Job, reserved: Kept | None) -> Kept | None:
        """Keep a finished job's image, in what was reserved for it; None: there is no room."""
        assert job.image is not None
        if reserved is not None:
            self.drop(reserved)
        if not self._make_room(caller, len(job.image.data), may_lose=True):
            return None
        kept = Kept(caller, job, len(job.image.data), self._clock(), is_finished=True)
        self._own[caller].undelivered[kept] = None
        self._by_age[kept] = None
        self._time()
        return self._put(kept)

    def deliver(self, kept: Kept) -> None:
        """It has been fetched: it goes before what has not."""
        if kept in self._by_age and not kept.is_delivered:
            kept.is_delivered = True
            own = self._own[kept.caller]
            del own.undelivered[kept]
            own.delivered[kept] = self._delivered[kept] = None

    def drop(self, kept: Kept) -> None:
        """Give its room back, once."""
        own, size = self._own[kept.caller], kept.held_bytes
        kept.held_bytes = 0
        self.bytes -= size
        own.bytes -= size
        for held in (own.delivered, own.undelivered, self._delivered, self._by_age):
            held.pop(kept, None)
        if not own.bytes and not own.undelivered and not own.delivered:
            del self._own[kept.caller]

    def expire(self) -> None:
        """Evict what has been kept for its time."""
        now = self._clock()
        while self._by_age and now - (oldest := next(iter(self._by_age))).since >= self._seconds:
            self._evict(oldest)

    def _time(self) -> None:
        """Have the oldest evicted when its time comes, whoever asks for anything or nobody."""
        if self._by_age and not self._is_timed:
            self._is_timed = True
            ends = next(iter(self._by_age)).since + self._seconds
            self._call_later(max(0.0, ends - self._clock()), self._on_time)

    def _on_time(self) -> None:
        self._is_timed = False
        self.expire()
        self._time()

    def _put(self, kept: Kept) -> Kept:
        self.bytes += kept.held_bytes
        self._own[kept.caller].bytes += kept.held_bytes
        return kept

    def _make_room(self, caller: str, held_bytes: int, *, may_lose: bool) -> bool:
        """Whether so many bytes fit, after evicting what may go; `may_lose`: undelivered ones of the caller too."""
        self.expire()
        share = self._bytes_max // _CALLER_SHARE
        own = self._own[caller]
        if held_bytes > share:
            return False
        while own.bytes + held_bytes > share:
            if not self._evict_first((own.delivered, own.undelivered) if may_lose else (own.delivered,)):
                return False
        while self.bytes + held_bytes > self._bytes_max:
            if not self._evict_first((self._delivered, own.undelivered) if may_lose else (self._delivered,)):
                return False
        return True

    def _evict_first(self, among: Iterable[dict[Kept, None]]) -> bool:
        for held in among:
            if held:
                self._evict(next(iter(held)))
                return True
        return False

    def _evict(self, kept: Kept) -> None:
        self.drop(kept)
        self._on_evict(kept)
