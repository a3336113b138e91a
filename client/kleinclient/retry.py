"""When a failed request is sent again: a pure policy, the pace of one client, the count and clock of one request."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kleinclient.errors import BrokenStream, KleinError, ServerUnreachable, Unavailable
from kleinclient.events import Retrying

TRANSPORT = ("UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED")  # without a reason they are of gRPC or a proxy


@dataclass(frozen=True)
class Retry:
    """How often and how long to try; `Retry(attempts=1)` never tries again.

    `attempts`: how often a server that refuses is asked, the first time counted. `patience`: for how many seconds a
    server that went away, drains or warms up is tried again where the request has no timeout; with one, as long as it
    lasts. A server that asks for more than `delay_max` seconds is not waited for.
    `backoff`: the first delay where the server named none; it doubles up to `backoff_max`. `jitter`: the share of a
    delay that is left to chance, so that many clients do not come back at once; nobody comes earlier than the server
    said. `burst` and `per_second`: how many resends one client sends at once, and how many in each second after that.
    """

    attempts: int = 5
    patience: float = 60.0
    delay_max: float = 60.0
    backoff: float = 0.25
    backoff_max: float = 5.0
    jitter: float = 1.0
    burst: int = 10
    per_second: float = 10.0

    def delay(self, error: KleinError, attempt: int, chance: float) -> tuple[float, float]:
        """Seconds to wait after `attempt` (from 1) failed: the least, and what `chance` (0 to 1) adds."""
        told, growth = error.retry_after, 2.0 ** min(attempt - 1, 30)
        if told is None:
            whole = min(self.backoff_max, self.backoff * growth)
            return whole * (1 - self.jitter), whole * self.jitter * chance
        # Everybody was told the same moment: twice as wide a window saves a third of the attempts of a crowd.
        spread = min(max(self.backoff_max, 4 * told), self.delay_max, 2 * max(self.backoff, told) * growth)
        return told, spread * self.jitter * chance


class Contact:
    """What one client has learnt of its server, over all its requests; safe to share between threads.

    `has_answered`: a klein server was there, so an address where nobody answers is an outage and no mistake.
    `takes_keys`: False once the server has refused idempotency keys.
    """

    def __init__(self, retry: Retry, clock: Callable[[], float] = time.monotonic):
        self.has_answered = False
        self.takes_keys = True
        self._retry = retry
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")

    def turn(self) -> float:
        """Takes the next resend's place; seconds until it is its turn."""
        with self._lock:
            now = self._clock()
            self._next = max(self._next, now) + 1 / self._retry.per_second
            return max(0.0, self._next - now - self._retry.burst / self._retry.per_second)


class Attempts:
    """How far one request has come: what failed, how many seconds are left, whether it may be sent again.

    `repeatable`: sending it twice does what sending it once does, as with an idempotency key. `heard`: the server has
    begun with it.
    """

    def __init__(
        self,
        retry: Retry,
        contact: Contact,
        *,
        timeout: float | None,
        repeatable: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.heard = False
        self.repeatable = repeatable
        self._retry = retry
        self._contact = contact
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout
        self._failures = 0
        self._failing_since: float | None = None

    def seconds_left(self) -> float | None:
        """Seconds for the attempt that starts now; None: no deadline."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    def progressed(self) -> None:
        """The server said something new: it is there, and what failed before is over."""
        self.heard = self._contact.has_answered = True
        self._failures, self._failing_since = 0, None

    def failed(self, error: KleinError) -> Retrying:
        """When to send again. Raises: `error`, if that is not safe, too often, too late or past the deadline."""
        self._failing_since = self._clock() if self._failing_since is None else self._failing_since
        self._failures += 1
        if error.reason and not isinstance(error, BrokenStream):
            self._contact.has_answered = True
        if not (self._is_safe(error) and self._is_worth_it(error, self._clock() - self._failing_since)):
            raise error from None
        least, more = self._retry.delay(error, self._failures, random.random())
        left = self.seconds_left()
        if left is not None and least < left:
            more = min(more, (left - least) / 2)
        delay = max(least + more, self._contact.turn())
        if delay >= self._bound(left):
            raise error from None
        return Retrying(delay, error.reason or error.status, error.message)

    def _is_safe(self, error: KleinError) -> bool:
        """Whether the request is made at most once, however often it is sent."""
        is_invited = error.retry_after is not None and error.status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
        is_broken = isinstance(error, BrokenStream) or (not error.reason and error.status in TRANSPORT)
        if self.repeatable:
            return is_invited or is_broken
        return not self.heard and (is_invited or isinstance(error, ServerUnreachable))

    def _is_worth_it(self, error: KleinError, failing_seconds: float) -> bool:
        """Outages are bounded by time, refusals by their number; where nobody ever answered, the address is wrong."""
        if self._retry.attempts <= 1 or (isinstance(error, ServerUnreachable) and not self._contact.has_answered):
            return False
        if (error.retry_after or 0.0) > self._retry.delay_max:
            return False
        if isinstance(error, Unavailable) and self._contact.has_answered:
            return self._end is not None or failing_seconds < self._retry.patience
        return self._failures < self._retry.attempts

    def _bound(self, left: float | None) -> float:
        return 2 * max(self._retry.delay_max, self._retry.backoff_max) if left is None else left
