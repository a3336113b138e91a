"""Keys that make retries safe: the same request again attaches to its running job, or gets its kept image.

Holds what this server runs and keeps; how far each key came, across restarts and replicas, is the store's
(`usage/keys.py`). On the event loop.
"""

import asyncio
from dataclasses import dataclass, field, replace

from kleinserve.core import Draft, ModelFacts
from kleinserve.desk.job import READERS_MAX, Job
from kleinserve.desk.kept import Kept, Shelf
from kleinserve.errors import IdempotencyKeyReused, KeyElsewhere, QueueFull, ResultGone, UnknownKey
from kleinserve.metrics import Metrics
from kleinserve.usage.keys import Entry, Keys, KeyState

# What a detached image may need at most: raw RGBA, and what a file that compresses nothing adds, its prompt too.
RAW_CHANNELS, FILE_BYTES = 4, 128 * 1024


@dataclass(eq=False)
class Held:
    """A key in use here, from its claim until its image is no longer here. `job`: once it is admitted."""

    caller: str
    key: str
    digest: bytes
    admitted: "asyncio.Future[Job]"
    entry: Entry | None = None
    is_redraw: bool = False
    kept: Kept | None = None
    waiting: int = 0  # requests that wait for it to be admitted

    @property
    def job(self) -> Job | None:
        done = self.admitted
        return done.result() if done.done() and not done.cancelled() and done.exception() is None else None


@dataclass
class KeyRing:
    """The keys in use on this server."""

    store: Keys
    shelf: Shelf
    facts: ModelFacts
    metrics: Metrics
    _held: dict[tuple[str, str], Held] = field(default_factory=dict)
    _of: dict[Job, Held] = field(default_factory=dict)

    async def digest(self, draft: Draft) -> bytes:
        """What makes a request the same as another; of references that may hold 40 MiB, so not on the event loop."""
        return await asyncio.to_thread(draft.digest, self.store.salt, self.facts)

    async def running(self, caller: str, key: str, digest: bytes | None) -> Held | None:
        """The key where it is in use here, its job admitted; `digest` None: whatever its request is.

        Raises: IdempotencyKeyReused; QueueFull where as many wait for that already as may read it.
        """
        while (held := self._held.get((caller, key))) is not None:
            if digest is not None and held.digest != digest:
                raise _reused(key)
            await self._admitted(held)
            if held.job is not None:
                return held
        return None

    async def _admitted(self, held: Held) -> None:
        """Wait until its request is admitted, or refused."""
        if held.waiting >= READERS_MAX:
            raise QueueFull(f"{READERS_MAX} requests wait for this key already", retry_seconds=1.0)
        held.waiting += 1
        try:
            await asyncio.wait([held.admitted])
        finally:
            held.waiting -= 1

    def hold(self, caller: str, key: str, digest: bytes) -> Held:
        """Use a key that nobody here uses, before anything is awaited."""
        held = Held(caller, key, digest, asyncio.get_running_loop().create_future())
        self._held[caller, key] = held
        return held

    async def claim(self, held: Held, draft: Draft, request_id: str) -> tuple[Draft, str]:
        """Take the key from the store: the draft and the request id that are to be drawn.

        Raises: IdempotencyKeyReused, ResultGone, KeyElsewhere, LedgerUnavailable.
        """
        claim = await self.store.claim(held.caller, held.key, held.digest, request_id, draft.options.seed)
        entry = held.entry = claim.entry
        if not claim.won and entry.digest != held.digest:
            held.entry = None
            raise _reused(held.key)
        if claim.won and entry.state is KeyState.RUNNING:
            return _seeded(draft, entry), request_id
        held.is_redraw = True
        if entry.state is KeyState.COMMITTED and (claim.won or entry.is_mine):
            self.metrics.replays.labels("redrawn").inc()
            return _seeded(draft, entry), entry.request_id
        held.entry = None
        if entry.state is KeyState.DELIVERED and (entry.is_mine or not entry.is_owner_alive):
            raise self._gone(entry)
        raise KeyElsewhere(entry.address)

    def admit(self, held: Held, job: Job) -> None:
        """Its job is admitted: whoever waited for it may attach."""
        self._of[job] = held
        held.admitted.set_result(job)

    def refuse(self, held: Held) -> None:
        """Its request was refused: the key is free."""
        if not held.admitted.done():
            held.admitted.cancel()
        self._release(held)

    def reserve(self, held: Held, job: Job) -> None:
        """Room for the image of a detached job. Raises: QueueFull."""
        if held.kept is None and job.image is None:
            held.kept = self.shelf.reserve(held.caller, job, RAW_CHANNELS * job.request.size.pixels + FILE_BYTES)

    def of(self, job: Job) -> Held | None:
        return self._of.get(job)

    def keep(self, job: Job) -> None:
        """Keep a job's image for its key, where there is a key and room."""
        held = self._of.get(job)
        if held is not None and job.image is not None:
            held.kept = self.shelf.keep(held.caller, job, held.kept)

    def is_kept(self, job: Job) -> bool:
        held = self._of.get(job)
        return held is not None and held.kept is not None and held.kept.is_finished

    def deliver(self, job: Job) -> None:
        """A stream with its image has ended OK, also where the image was evicted while it was read."""
        if job.entry is not None:
            self.store.delivered(job.entry)
        held = self._of.get(job)
        if held is not None and held.kept is not None:
            self.shelf.deliver(held.kept)

    def end(self, job: Job) -> None:
        """Its image is not here, or no longer: if nothing was billed the key is free."""
        held = self._of.pop(job, None)
        if held is not None:
            self._release(held)

    def evict(self, kept: Kept) -> None:
        """The shelf gave a result up: its key is remembered, its image gone."""
        held = self._of.get(kept.job)
        if held is not None and held.kept is kept:
            held.kept = None
            kept.job.image = None
            self.end(kept.job)

    def forget(self, held: Held) -> None:
        """Cancelled by its key: the image is gone and the key is free, however far it came."""
        if held.entry is not None:
            self.store.forget(held.entry)
        if held.job is not None:
            held.job.image = None
            self.end(held.job)

    async def gone(self, caller: str, key: str) -> ResultGone:
        """What is said of a remembered key's image that is nowhere. Raises: as `remembered`."""
        return self._gone(await self.remembered(caller, key))

    async def remembered(self, caller: str, key: str) -> Entry:
        """The remembered key of a job that is nowhere. Raises: UnknownKey, KeyElsewhere, LedgerUnavailable."""
        entry = await self.store.find(caller, key)
        if entry is not None and not entry.is_mine and entry.is_owner_alive:
            raise KeyElsewhere(entry.address)
        if entry is None or entry.state is KeyState.RUNNING:
            raise UnknownKey("no job has this key")
        return entry

    def _gone(self, entry: Entry) -> ResultGone:
        self.metrics.replays.labels("gone").inc()
        return gone(entry)

    def _release(self, held: Held) -> None:
        self._held.pop((held.caller, held.key), None)
        if held.kept is not None:
            self.shelf.drop(held.kept)
            held.kept = None
        if held.entry is not None and not held.is_redraw:
            self.store.free(held.entry)


def gone(entry: Entry) -> ResultGone:
    """What was recorded, for whoever comes too late."""
    metadata = {"record_id": entry.record_id}
    if entry.usage is not None:
        used = entry.usage
        metadata |= {
            "output_megapixels": str(used.output_megapixels),
            "reference_megapixels": str(used.reference_megapixels),
            "cost_microusd": str(used.cost_microusd),
            "price_version": used.price_version,
        }
    if entry.state is KeyState.DELIVERED:
        return ResultGone("the image was delivered, and is no longer kept", metadata=metadata)
    return ResultGone("the image is billed and not kept; the same request draws it again, free", metadata=metadata)


def _seeded(draft: Draft, entry: Entry) -> Draft:
    return replace(draft, options=replace(draft.options, seed=entry.seed))


def _reused(key: str) -> IdempotencyKeyReused:
    return IdempotencyKeyReused(f"the key {key[:64]!r} belongs to a different request")
