"""What each caller may take: requests at once, and output megapixels a minute. Knows no request and no transport.

Used on the event loop alone. All arithmetic is in integers: a megapixel is 60,000,000,000 grains, so that a bucket of N
megapixels a minute refills by exactly N grains a nanosecond.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from kleinserve.core import Caller
from kleinserve.errors import QuotaExceeded

MINUTE_NANOSECONDS = 60_000_000_000
GRAINS = MINUTE_NANOSECONDS  # of a megapixel
MILLISECOND_NANOSECONDS = 1_000_000

SLOT_RETRY_SECONDS = 1.0  # a guess: a slot is free when one of the caller's own requests ends
NEVER_RETRY_SECONDS = 3600.0  # larger than the whole bucket: it fits when the operator raises the limit


@dataclass
class _Taken:
    """Megapixels taken at a time, and the bucket's refill from then on. `is_final`: they can no longer come back."""

    nanoseconds: int
    grains: int
    refill: int  # grains a nanosecond
    is_final: bool = False


class _Account:
    """What one caller has taken: a bucket that leaks, told by what it lacks.

    What can still come back is kept one by one, so that the bucket is then as if that request had never been: what the
    minutes have repaid already does not come back a second time.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._base = _Taken(0, 0, 0)  # its grains: what the bucket lacked then, all told
        self._taken: deque[_Taken] = deque()

    def debt_at(self, now: int) -> int:
        """What the bucket lacks now, in grains."""
        last = self._base
        for taken in self._taken:
            last = _folded(last, taken)
        return max(0, last.grains - last.refill * (now - last.nanoseconds))

    def set_refill(self, now: int, refill: int) -> None:
        """From now on the bucket refills by so many grains a nanosecond."""
        if (self._taken[-1] if self._taken else self._base).refill != refill:
            self._taken.append(_Taken(now, 0, refill, is_final=True))

    def take(self, now: int, grains: int, refill: int) -> _Taken:
        """Take so many grains, which can come back."""
        if not self.debt_at(now):  # whatever was taken is repaid, and no longer comes back
            self._taken.clear()
            self._base = _Taken(now, 0, refill)
        self._taken.append(_Taken(now, grains, refill))
        return self._taken[-1]

    def settle(self) -> None:
        """Fold what can no longer come back, up to the first that can."""
        while self._taken and self._taken[0].is_final:
            self._base = _folded(self._base, self._taken.popleft())


def _folded(before: _Taken, taken: _Taken) -> _Taken:
    debt = max(0, before.grains - before.refill * (taken.nanoseconds - before.nanoseconds)) + taken.grains
    return _Taken(taken.nanoseconds, debt, taken.refill)


class Grant:
    """A request's leave to run. It is released once, whatever became of the request.

    `on_return` is called where megapixels that were taken elsewhere are to come back.
    """

    def __init__(self, account: _Account):
        self._account, self._is_released = account, False
        self._taken: _Taken | None = None
        self.on_return: Callable[[], None] = lambda: None

    def take(self, taken: _Taken | None) -> None:
        """These megapixels are the request's."""
        self._taken = taken

    def release(self, *, ran: bool, by_server: bool) -> None:
        """Give the slot back, and the megapixels too if no step of the request `ran` or the server ended it.

        A second call does nothing.
        """
        if self._is_released:
            return
        self._is_released = True
        self._account.requests -= 1
        if by_server or not ran:
            self.on_return()
        if self._taken is None:
            return
        if by_server or not ran:
            self._taken.grains = 0
        self._taken.is_final = True
        self._account.settle()


class Quota:
    """Counts what callers take. A caller's limits are those of the Caller that is given: new ones count at once."""

    def __init__(self, clock: Callable[[], int]):
        """`clock` says nanoseconds and never goes back: time.monotonic_ns."""
        self._clock = clock
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    def admit(self, caller: Caller) -> Grant:
        """Give a request, or a reader of what was admitted before, a slot.

        Raises: QuotaExceeded where requests_max is reached, with SLOT_RETRY_SECONDS.
        """
        account = self._accounts[caller.name]
        if caller.requests_max is not None and account.requests >= caller.requests_max:
            raise QuotaExceeded(caller.name, "requests_max", caller.requests_max, SLOT_RETRY_SECONDS)
        account.requests += 1
        return Grant(account)

    def charge(self, grant: Grant, caller: Caller, megapixels: int) -> None:
        """Take so many output megapixels for a request that has a slot, once.

        Raises: QuotaExceeded, and then nothing is taken. Its `retry_seconds` is when they fit, rounded up to a
        millisecond, if the caller takes none before; NEVER_RETRY_SECONDS for more than the whole bucket.
        """
        grant.take(self._take(self._accounts[caller.name], caller, megapixels))

    def _take(self, account: _Account, caller: Caller, megapixels: int) -> _Taken | None:
        limit, now = caller.megapixels_per_minute, self._clock()
        if limit is None:
            return None
        if megapixels > limit:
            why = f", and {megapixels} megapixels never fit"
            raise QuotaExceeded(caller.name, "megapixels_per_minute", limit, NEVER_RETRY_SECONDS, why)
        account.set_refill(now, limit)
        lacking = account.debt_at(now) + (megapixels - limit) * GRAINS
        if lacking > 0:
            milliseconds = -(-lacking // (limit * MILLISECOND_NANOSECONDS))
            raise QuotaExceeded(caller.name, "megapixels_per_minute", limit, milliseconds / 1000)
        return account.take(now, megapixels * GRAINS, limit)
