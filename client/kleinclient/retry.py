"""When a failed request may be sent again: a pure policy, and the count and the clock of one request."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from kleinclient.errors import KleinError
from kleinclient.events import Retrying


@dataclass(frozen=True)
class Retry:
    """How often and how long to try; `Retry(attempts=1)` never tries again.

    `attempts` counts the first one. A server that asks for more than `delay_max` seconds is not waited for.
    `backoff`: seconds before the first resend after a lost connection, doubled each time. `jitter`: the share of a
    delay that may be added at random, so that many clients do not come back at once.
    """

    attempts: int = 5
    delay_max: float = 60.0
    backoff: float = 0.25
    jitter: float = 0.2

    def delay(self, error: KleinError, attempt: int, *, heard: bool, has_key: bool) -> float | None:
        """Seconds to wait after `attempt` (from 1) failed with `error`; None: it must not be sent again.

        Sending again is safe in two cases: the server said when to, and nothing of this request was `heard`, so it
        made nothing; or the request has an idempotency key, so the server makes it once, however often it is sent.
        """
        is_invited = error.status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and error.retry_delay is not None
        is_lost = error.status == "UNAVAILABLE" and heard
        if attempt >= self.attempts or not ((has_key and (is_invited or is_lost)) or (is_invited and not heard)):
            return None
        delay = error.retry_delay if error.retry_delay is not None else self.backoff * 2.0 ** (attempt - 1)
        return None if delay > self.delay_max else delay * (1 + self.jitter * random.random())


class Attempts:
    """How far one request has come: attempts made, seconds left, whether anything was heard."""

    def __init__(
        self, retry: Retry, *, timeout: float | None, has_key: bool, clock: Callable[[], float] = time.monotonic
    ):
        self.heard = False
        self._retry = retry
        self._has_key = has_key
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout
        self._made = 1

    def seconds_left(self) -> float | None:
        """Seconds for the attempt that starts now; None: no deadline."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    def failed(self, error: KleinError) -> Retrying:
        """When to send again. Raises: `error`, if that is not safe, or would be past the deadline."""
        delay = self._retry.delay(error, self._made, heard=self.heard, has_key=self._has_key)
        left = self.seconds_left()
        if delay is None or (left is not None and delay >= left):
            raise error from None
        self._made += 1
        return Retrying(delay, error.reason or error.status, error.message)
