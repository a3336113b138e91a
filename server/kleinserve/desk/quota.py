"""What a caller may take, here and on all servers together: slots are each server's, megapixels everyone's."""

from typing import Protocol, TypeVar

from kleinserve.core import Caller
from kleinserve.identity.limits import Grant, Quota

T = TypeVar("T")


class Buckets(Protocol[T]):
    """Buckets of megapixels that servers share (usage/buckets.py)."""

    async def take(self, caller: str, megapixels: int, limit: int) -> T: ...
    def give_back(self, taken: T) -> None: ...


class SharedQuota:
    """`requests_max` is counted by `local`; so are megapixels where there are no `buckets`. On the event loop."""

    def __init__(self, local: Quota, buckets: Buckets[T] | None):
        self._local, self._buckets = local, buckets

    async def admit(self, caller: Caller, megapixels: int) -> Grant:
        """Let a request in. Raises: QuotaExceeded, LedgerUnavailable; then nothing is taken."""
        limit, buckets = caller.megapixels_per_minute, self._buckets
        if buckets is None or limit is None or not megapixels or megapixels > limit:
            return self._local.admit(caller, megapixels)
        grant = self._local.admit(caller, 0)
        try:
            taken = await buckets.take(caller.name, megapixels, limit)
        except BaseException:
            grant.release(ran=False, by_server=False)
            raise
        grant.on_return = lambda: buckets.give_back(taken)
        return grant

    def join(self, caller: Caller) -> Grant:
        """Let a further reader in. Raises: QuotaExceeded."""
        return self._local.admit(caller, 0)
