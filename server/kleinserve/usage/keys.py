"""What is remembered of idempotency keys, so that a retry is never a second bill. Knows no job and no image."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from kleinserve.core import Usage, UsageRecord
from kleinserve.usage.writer import Declined

SALT_BYTES = 32


class LostOwnership(Declined):
    """The key is no longer this server's: nothing was recorded, and the image must not be delivered."""


class KeyState(Enum):
    """How far a key's request came. RUNNING: nothing is billed. COMMITTED: billed, no stream with its image has ended
    OK. DELIVERED: one has.
    """

    RUNNING = "running"
    COMMITTED = "committed"
    DELIVERED = "delivered"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of one caller's key.

    `digest`: of the request, made with `Keys.salt`. `is_mine`: this process owns it: it runs the job, or ran it last
    and may keep its image. Else `address` is the owner's, and `is_owner_alive` says whether asking there makes sense.
    `record_id` and `usage`: what was recorded; "" and None while RUNNING.
    """

    caller: str
    key: str
    digest: bytes
    request_id: str
    seed: int
    state: KeyState
    is_mine: bool
    is_owner_alive: bool
    address: str
    record_id: str
    usage: Usage | None
    create_microseconds: int


@dataclass(frozen=True)
class Claim:
    """The answer to `claim`. What to do with it:

    won, RUNNING: the key is this request's: draw `entry.seed`, then `commit` or `free`. The seed is the given one, but
        the former owner's where that one is gone without a trace and the request is the same.
    won, COMMITTED: billed once and never delivered, and its owner is gone: draw once more with `entry.seed` under
        `entry.request_id`, commit nothing, then `delivered`. Whether that succeeds or not, the key stays COMMITTED.
    not won: compare `entry.digest` first (different: IDEMPOTENCY_KEY_REUSED). Then, where the entry `is_mine`: attach
        to the job that runs, or replay the kept image; COMMITTED and no longer kept: redraw, as above; DELIVERED and
        no longer kept: RESULT_GONE. Not mine and its owner alive: forward to `address`. Not mine and its owner gone:
        it is DELIVERED, RESULT_GONE.
    """

    won: bool
    entry: Entry


class Keys(Protocol):
    """Remembers keys for `key_seconds`, at most `keys_max` of them. Methods run on the event loop and never block it.

    Beyond `keys_max` the oldest of the caller that has the most go first, those that were delivered before the others,
    running ones never. So who floods the memory loses his own keys.

    What a server that is gone leaves behind: its RUNNING keys are free (claimed once, by whoever asks first), its
    COMMITTED ones are redrawn by whoever claims them with the same request, its DELIVERED ones are remembered.
    A server is gone when it closed its keys, when a later process took its place (the same SQLite file, or the same
    owner id), or when it did not tell the shared database for `owner_seconds` that it lives.
    """

    @property
    def salt(self) -> bytes:
        """What digests are made with; the same for all who share the database, for ever."""
        ...

    async def claim(self, caller: str, key: str, digest: bytes, request_id: str, seed: int) -> Claim:
        """Take the key for this request, or learn who has it. Of several at once, here or elsewhere, exactly one wins.

        Raises: LedgerUnavailable; then, and when the caller of this is cancelled, the key is not taken.
        """
        ...

    async def find(self, caller: str, key: str) -> Entry | None:
        """The entry, for Attach and Cancel; None: the key is unknown, or free. Raises: LedgerUnavailable."""
        ...

    async def commit(self, record: UsageRecord, entry: Entry, *others: tuple[UsageRecord, Entry]) -> None:
        """Record `record` and make the won RUNNING `entry` COMMITTED, both or neither, durable; again changes nothing.

        With `others`, all or nothing of them all.
        Raises: LostOwnership; LedgerUnavailable: then both may still happen later, which `abandon` mends.
        """
        ...

    def abandon(self, entry: Entry, failed: UsageRecord, doubted_id: str, taken_over: Callable[[], None]) -> None:
        """The commit of the record `doubted_id` failed: forget the key, and write `failed` in that record's place.

        Where another server has taken the key over with that record, both are left to it: instead, `taken_over` is
        called, from any thread. Not awaited, in order, kept through outages.
        """
        ...

    def delivered(self, entry: Entry) -> None:
        """A stream with the image has ended OK: COMMITTED becomes DELIVERED. Not awaited; kept through outages."""
        ...

    def free(self, entry: Entry) -> None:
        """The job was refused, failed or was cancelled: forget the key if it is RUNNING and still this job's.

        Not awaited, and in order: a claim that comes later finds the key free. Kept through outages.
        """
        ...

    def forget(self, entry: Entry) -> None:
        """Cancel after the commit: forget the key, however far it came; the record stays. As `free`, not awaited."""
        ...

    def reached_at(self, address: str) -> None:
        """Say where other servers reach this one, HOST:PORT, before it claims a key."""
        ...

    def close(self) -> None:
        """Say that this server is gone, before its ledger is closed."""
        ...


class MemoryKeys:
    """`Keys` of a server without a ledger: they end with the process, and `commit` records nothing."""

    def __init__(self, *, key_seconds: float, keys_max: int, clock: Callable[[], float] = time.time):
        self.salt = os.urandom(SALT_BYTES)
        self._key_microseconds, self._keys_max, self._clock = int(key_seconds * 1e6), keys_max, clock
        self._count = 0
        self._callers: dict[
            str, dict[KeyState, dict[str, Entry]]
        ] = {}  # each state's keys, the first to reach it first

    async def claim(self, caller: str, key: str, digest: bytes, request_id: str, seed: int) -> Claim:
        """As the protocol says; it never fails."""
        self._drop_old(caller)
        entry = self._get(caller, key)
        if entry:
            return Claim(False, entry)
        if self._count >= self._keys_max:
            self._evict()
        entry = Entry(caller, key, digest, request_id, seed, KeyState.RUNNING, True, True, "", "", None, self._now())
        self._put(entry)
        return Claim(True, entry)

    async def find(self, caller: str, key: str) -> Entry | None:
        """As the protocol says."""
        self._drop_old(caller)
        return self._get(caller, key)

    async def commit(self, record: UsageRecord, entry: Entry, *others: tuple[UsageRecord, Entry]) -> None:
        """As the protocol says, but for the record."""
        found = [(each, self._same(key)) for each, key in ((record, entry), *others)]
        if not all(present and present.record_id in ("", each.record_id) for each, present in found):
            raise LostOwnership("the key was given up")
        for each, present in found:
            if present and present.state is KeyState.RUNNING:
                self._put(replace(present, state=KeyState.COMMITTED, record_id=each.record_id, usage=each.usage))

    def abandon(self, entry: Entry, failed: UsageRecord, doubted_id: str, taken_over: Callable[[], None]) -> None:
        """No commit fails."""

    def delivered(self, entry: Entry) -> None:
        """As the protocol says."""
        present = self._same(entry)
        if present and present.state is KeyState.COMMITTED:
            self._put(replace(present, state=KeyState.DELIVERED))

    def free(self, entry: Entry) -> None:
        """As the protocol says."""
        present = self._same(entry)
        if present and present.state is KeyState.RUNNING:
            self._remove(present)

    def forget(self, entry: Entry) -> None:
        """As the protocol says."""
        present = self._same(entry)
        if present:
            self._remove(present)

    def reached_at(self, address: str) -> None:
        """There are no others."""

    def close(self) -> None:
        """Nobody asks any more."""

    def _now(self) -> int:
        return int(self._clock() * 1e6)

    def _get(self, caller: str, key: str) -> Entry | None:
        states = self._callers.get(caller, {})
        return next((keys[key] for keys in states.values() if key in keys), None)

    def _same(self, entry: Entry) -> Entry | None:
        present = self._get(entry.caller, entry.key)
        return present if present and present.request_id == entry.request_id else None

    def _put(self, entry: Entry) -> None:
        present = self._get(entry.caller, entry.key)
        if present:
            self._remove(present)
        states = self._callers.setdefault(entry.caller, {state: OrderedDict() for state in KeyState})
        states[entry.state][entry.key] = entry
        self._count += 1

    def _remove(self, entry: Entry) -> None:
        del self._callers[entry.caller][entry.state][entry.key]
        self._count -= 1

    def _drop_old(self, caller: str) -> None:
        oldest = self._now() - self._key_microseconds
        for state in (KeyState.COMMITTED, KeyState.DELIVERED):
            keys = self._callers.get(caller, {}).get(state)
            while keys and (first := next(iter(keys.values()))).create_microseconds <= oldest:
                self._remove(first)

    def _evict(self) -> None:
        """Forget the oldest key of the caller that has the most, a delivered one if there is one."""
        ended = [[states[KeyState.DELIVERED], states[KeyState.COMMITTED]] for states in self._callers.values()]
        delivered, committed = max(ended, key=lambda keys: len(keys[0]) + len(keys[1]))
        if keys := delivered or committed:
            self._remove(next(iter(keys.values())))
