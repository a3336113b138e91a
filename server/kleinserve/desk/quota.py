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

    def join(self, caller: Caller) -> Grant:
        """Let a request or a further reader in: a slot. Raises: QuotaExceeded."""
        return self._local.admit(caller)

    async def charge(self, grant: Grant, caller: Caller, megapixels: int) -> None:
        """Take a request's megapixels for its grant. Raises: QuotaExceeded, LedgerUnavailable; then none is taken."""
        limit, buckets = caller.megapixels_per_minute, self._buckets
        if buckets is None or limit is None or megapixels > limit:
            self._local.charge(grant, caller, megapixels)
            return
        taken = await buckets.take(caller.name, megapixels, limit)
        grant.on_return = lambda: buckets.give_back(taken)
