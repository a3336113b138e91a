"""What a key that the store remembers means here, and what of it is held while it is in use.

That requests under one key join, are refused or are drawn again is test_desk.py's.
"""

from dataclasses import replace

import pytest
from kleinserve.desk.kept import Shelf
from kleinserve.desk.keys import FILE_BYTES, RAW_CHANNELS, Held, KeyRing
from kleinserve.errors import IdempotencyKeyReused, KleinError, LedgerUnavailable, QueueFull, ResultGone, UnknownKey
from kleinserve.metrics import Metrics
from kleinserve.usage.keys import Claim, Entry, KeyState, MemoryKeys

from tests.desk.requests import IMAGE, USAGE, job
from tests.desk.stage import drafted, never
from tests.scheduler.scripted import FACTS
from tests.usage.some import record

DRAFT = drafted("k")
DIGEST = b"digest"


SHARE = 200_000  # bytes that one caller may keep


class Remembered(MemoryKeys):
    """A store in which another server, or another life of this one, has left an entry."""

    def __init__(self) -> None:
        super().__init__(key_seconds=3600, keys_max=100)
        self.answer: Claim | None = None

    async def claim(self, caller: str, key: str, digest: bytes, request_id: str, seed: int) -> Claim:
        return self.answer or await super().claim(caller, key, digest, request_id, seed)

    async def find(self, caller: str, key: str) -> Entry | None:
        return self.answer.entry if self.answer else await super().find(caller, key)


@pytest.fixture
def store() -> Remembered:
    return Remembered()


@pytest.fixture
def ring(store: Remembered) -> KeyRing:
    shelf = Shelf(8 * SHARE, 60.0, lambda: 0.0, never, lambda kept: made.evict(kept))
    made = KeyRing(store, shelf, FACTS, Metrics())
    return made


def entry(state: KeyState, *, is_mine: bool = False, is_owner_alive: bool = False, digest: bytes = DIGEST) -> Entry:
    paid = None if state is KeyState.RUNNING else USAGE
    recorded = "" if paid is None else "record"
    return Entry("web", "k", digest, "before", 99, state, is_mine, is_owner_alive, "other:1", recorded, paid, 0)


async def claimed(ring: KeyRing) -> tuple[Held, str, int]:
    """Hold the key and claim it: what is held, under which request id and with which seed it is to be drawn."""
    held = ring.hold("web", "k", DIGEST)
    draft, request_id = await ring.claim(held, DRAFT, "now")
    return held, request_id, draft.options.seed


@pytest.mark.parametrize(
    ("claim", "drawn", "is_redraw"),
    [
        (Claim(True, entry(KeyState.RUNNING, is_mine=True)), ("now", 99), False),
        (Claim(True, entry(KeyState.COMMITTED, is_mine=True)), ("before", 99), True),
        (Claim(False, entry(KeyState.COMMITTED, is_mine=True)), ("before", 99), True),
    ],
    ids=["unbilled and its owner gone", "billed and its owner gone", "billed here and no longer kept"],
)
async def test_what_was_begun_is_drawn_with_its_seed(
    ring: KeyRing, store: Remembered, claim: Claim, drawn: tuple[str, int], is_redraw: bool
) -> None:
    """Where it was billed under its own request id, and counted as redrawn."""
    store.answer = claim
    held, *decided = await claimed(ring)
    assert (tuple(decided), held.is_redraw, held.entry) == (drawn, is_redraw, claim.entry)
    assert ring.metrics.registry.get_sample_value("klein_replays_total", {"kind": "redrawn"}) == float(is_redraw)


@pytest.mark.parametrize(
    ("claim", "error"),
    [
        (Claim(False, entry(KeyState.DELIVERED, is_mine=True)), ResultGone),
        (Claim(False, entry(KeyState.DELIVERED)), ResultGone),
        (Claim(False, entry(KeyState.DELIVERED, is_owner_alive=True)), LedgerUnavailable),
        (Claim(False, entry(KeyState.COMMITTED, is_owner_alive=True)), LedgerUnavailable),
        (Claim(False, entry(KeyState.RUNNING, is_owner_alive=True)), LedgerUnavailable),
        (Claim(False, entry(KeyState.RUNNING, is_mine=True, digest=b"other")), IdempotencyKeyReused),
        (Claim(False, entry(KeyState.DELIVERED, is_mine=True, digest=b"other")), IdempotencyKeyReused),
        (Claim(False, entry(KeyState.COMMITTED, is_owner_alive=True, digest=b"other")), IdempotencyKeyReused),
    ],
)
async def test_a_key_that_is_not_to_be_drawn_is_refused_and_stays(
    ring: KeyRing, store: Remembered, claim: Claim, error: type[KleinError]
) -> None:
    """Delivered, or another server's that lives, or another request's: nothing of the entry is freed by refusing."""
    freed: list[Entry] = []
    store.free = freed.append  # type: ignore[method-assign]
    store.answer = claim
    held = ring.hold("web", "k", DIGEST)
    with pytest.raises(error) as refused:
        await ring.claim(held, DRAFT, "now")
    ring.refuse(held)
    assert (freed, ring._held) == ([], {})
    if error is ResultGone:
        assert refused.value.metadata == {
            "record_id": "record",
            "output_megapixels": "1",
            "reference_megapixels": "0",
            "cost_microusd": "14000",
            "price_version": "test",
        }


async def test_a_redraw_that_fails_leaves_the_key_billed(ring: KeyRing, store: Remembered) -> None:
    """Refused or ended, it can be drawn once more."""
    held, request_id, _ = await claimed(ring)
    assert held.entry is not None
    await store.commit(record(request_id=request_id), held.entry)
    ring.refuse(held)
    again, *_ = await claimed(ring)
    assert again.is_redraw
    ring.refuse(again)
    found = await store.find("web", "k")
    assert found is not None
    assert found.state is KeyState.COMMITTED


async def test_a_key_that_runs_is_found_once_its_job_is_admitted(ring: KeyRing) -> None:
    """By its own caller, for the same request or whatever it is; by nobody after its end."""
    held, *_ = await claimed(ring)
    running = job()
    ring.admit(held, running)
    assert (await ring.running("web", "k", DIGEST), ring.of(running)) == (held, held)
    assert await ring.running("web", "k", None) is held
    assert await ring.running("other", "k", None) is None
    with pytest.raises(IdempotencyKeyReused, match="'k'"):
        await ring.running("web", "k", b"other")
    ring.end(running)
    assert await ring.running("web", "k", DIGEST) is None
    with pytest.raises(UnknownKey):
        await ring.gone("web", "k")


async def test_room_is_reserved_once_and_becomes_the_image_s(ring: KeyRing) -> None:
    """Raw RGBA for a detached job, the file's size once it is there, nothing after its end."""
    held, *_ = await claimed(ring)
    running = job()
    ring.admit(held, running)
    for _ in range(2):
        ring.reserve(held, running)
    assert (ring.shelf.bytes, ring.is_kept(running)) == (RAW_CHANNELS * 64 * 64 + FILE_BYTES, False)
    running.image = IMAGE
    ring.keep(running)
    ring.reserve(held, running)
    assert (ring.shelf.bytes, ring.is_kept(running)) == (len(IMAGE.data), True)
    ring.forget(held)
    assert (ring.shelf.bytes, running.image) == (0, None)


async def test_an_image_without_a_key_is_not_kept(ring: KeyRing) -> None:
    """Nobody could ask for it again."""
    unkeyed = job()
    unkeyed.image = IMAGE
    ring.keep(unkeyed)
    ring.deliver(unkeyed)
    assert (ring.is_kept(unkeyed), ring.shelf.bytes) == (False, 0)


async def test_what_the_shelf_gives_up_is_remembered_as_far_as_it_came(ring: KeyRing, store: Remembered) -> None:
    """Its image is gone and the key no longer here; the store still knows that it was billed and delivered."""
    held, request_id, _ = await claimed(ring)
    assert held.entry is not None
    done = job()
    done.entry = held.entry
    ring.admit(held, done)
    await store.commit(record(request_id=request_id), held.entry)
    done.image = replace(IMAGE, data=bytes(SHARE))
    ring.keep(done)
    ring.deliver(done)
    beside = ring.hold("web", "l", DIGEST)
    with pytest.raises(QueueFull):
        ring.shelf.reserve("web", job(), SHARE + 1)
    ring.admit(beside, job())
    ring.reserve(beside, job())
    assert (done.image, ring.of(done), await ring.running("web", "k", DIGEST)) == (None, None, None)
    assert (await ring.remembered("web", "k")).state is KeyState.DELIVERED
