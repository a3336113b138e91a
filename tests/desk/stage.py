"""A real desk whose backend, decoding and ledger do what a test says, when it says so."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kleinserve.backend.backend import Load, Sink, State
from kleinserve.config import load
from kleinserve.core import (
    ANONYMOUS,
    Admitted,
    BackendEvent,
    Caller,
    Draft,
    Event,
    Failed,
    Finished,
    ModelFacts,
    OnDisconnect,
    Operation,
    Options,
    Pixels,
    Priority,
    Reference,
    Request,
    Size,
    Started,
    UsageRecord,
)
from kleinserve.desk.books import Books
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.desk import Asked, Desk, Stream
from kleinserve.desk.kept import Shelf
from kleinserve.desk.keys import KeyRing
from kleinserve.desk.lifecycle import Lifecycle
from kleinserve.desk.quota import SharedQuota
from kleinserve.errors import Cancelled, KleinError
from kleinserve.identity.limits import Quota
from kleinserve.metrics import Metrics
from kleinserve.usage.keys import Entry, MemoryKeys
from kleinserve.usage.ledger import NoLedger
from kleinserve.usage.price import configured

from tests.desk.requests import IMAGE, SPENT
from tests.scheduler.scripted import FACTS, Clock


@dataclass
class ScriptedBackend:
    """Takes every request, unless it is to refuse, and tells of it what the test says."""

    refusal: KleinError | None = None
    sinks: dict[str, Sink] = field(default_factory=dict)
    submitted: list[tuple[Request, float | None]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    changed: list[tuple[str, float | None, Priority]] = field(default_factory=list)
    facts: ModelFacts = FACTS

    async def start(self, on_state: Any) -> None:
        on_state(State.READY)

    async def submit(self, request: Request, seconds_left: float | None, sink: Sink) -> Admitted:
        await asyncio.sleep(0)  # as the real one, which tokenises elsewhere
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append((request, seconds_left))
        self.sinks[request.request_id] = sink
        return Admitted(3, False, 0.5, 1.0)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def change(self, request_id: str, seconds_left: float | None, priority: Priority) -> None:
        self.changed.append((request_id, seconds_left, priority))

    def load(self) -> Load:
        return Load(0.0, 0.0, 0, 0)

    async def drain(self, grace_seconds: float) -> None:
        pass

    def tell(self, request_id: str, *events: BackendEvent) -> None:
        for event in events:
            self.sinks[request_id](event)

    def stop(self, request_id: str) -> None:
        """Say the last word that follows a cancel."""
        self.tell(request_id, Failed(Cancelled("stopped"), SPENT))


@dataclass
class ScriptedIntake:
    """Decodes whatever it is given to a picture of 96 × 64, when `gate` is open."""

    refusal: KleinError | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    decoded: int = 0

    async def decode(self, turn: str, references: tuple[bytes, ...], *, keep_alpha: bool) -> tuple[Reference, ...]:
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.decoded += len(references)
        return tuple(Reference(Pixels(Size(96, 64), 3, bytes(3 * 96 * 64)), data) for data in references)


@dataclass
class OpenLedger(NoLedger):
    """Keeps what is committed, when `gate` is open, or fails; what it is to keep at once; and what is noted.

    `together`: how many records each commit had.
    """

    together: list[int] = field(default_factory=list)
    records: list[UsageRecord] = field(default_factory=list)
    noted: list[UsageRecord] = field(default_factory=list)
    failure: BaseException | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    is_up: bool = True

    async def commit(self, *records: UsageRecord) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.records += records
        self.together.append(len(records))

    def keep(self, record: UsageRecord, instead_of: str = "") -> None:
        self.records.append(record)

    def note(self, record: UsageRecord) -> None:
        self.noted.append(record)


class GatedKeys(MemoryKeys):
    """Keys in memory whose commits wait for the ledger's gate, and fail with it."""

    def __init__(self, ledger: OpenLedger):
        super().__init__(key_seconds=3600, keys_max=100)
        self._ledger = ledger

    async def commit(self, record: UsageRecord, entry: Entry, *others: tuple[UsageRecord, Entry]) -> None:
        await self._ledger.commit(record, *(each for each, _ in others))
        await super().commit(record, entry, *others)

    def abandon(self, entry: Entry, failed: UsageRecord, doubted_id: str, taken_over: Callable[[], None]) -> None:
        self._ledger.keep(failed)


def never(seconds: float, function: Callable[[], None]) -> None:
    """Call it later, by a clock that stands still."""


class Stage:
    """A ready desk on the running event loop, and its parts. `settings` over small bounds.

    `clock`: the quota's, in nanoseconds.
    """

    def __init__(self, **settings: Any):
        config = load({"queue_requests_max": 100, "kept_bytes_max": 8 * 200_000, **settings})
        self.metrics, self.lifecycle, self.backend = Metrics(), Lifecycle(), ScriptedBackend()
        self.intake, self.ledger, self.clock = ScriptedIntake(), OpenLedger(), Clock(0)
        self.intake.gate.set()
        self.ledger.gate.set()
        self.keys = GatedKeys(self.ledger)
        self.shelf = Shelf(config.kept_bytes_max, 60.0, lambda: 0.0, never, lambda kept: self.ring.evict(kept))
        self.ring = KeyRing(self.keys, self.shelf, FACTS, self.metrics)
        self.books = Books(self.ledger, self.keys, configured(config), "scripted", self.metrics)
        self.desk = Desk(
            self.backend,
            self.intake,
            self.books,
            self.ring,
            SharedQuota(Quota(lambda: int(self.clock.now)), None),
            self.lifecycle,
            config,
            self.metrics,
        )
        self.lifecycle.become(State.READY)

    async def open(self, request_id: str = "a", *, draft: Draft | None = None, **asked: Any) -> Stream:
        return await self.desk.open(
            draft or drafted(), replace(ASKED, **{"request_id": request_id, "bundle": Bundle()} | asked)
        )

    def start(self, request_id: str = "a") -> None:
        self.backend.tell(request_id, Started(0.1))

    def draw(self, request_id: str = "a") -> None:
        """The backend's image is there; it has not been settled yet."""
        self.backend.tell(request_id, Finished(IMAGE, SPENT))

    async def until(self, condition: Any) -> None:
        """Let the loop go on until this is true."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def idle(self) -> None:
        """Until no job is left, and all is written."""
        await self.until(lambda: not self.desk.jobs.shown())

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def waiting(self) -> int:
        """Places in the queue that are taken."""
        return self.desk._reception._places.requests

    @property
    def gauges(self) -> tuple[float, float]:
        """How many wait, and how many run."""
        return self.counted("klein_queue_depth", priority="standard"), self.counted("klein_running_requests")


ASKED = Asked("a", ANONYMOUS, "peer", None, 100, 1_700_000_000_000_000)
LIMITED = Caller("web", requests_max=1)


def drafted(key: str = "", *, references: int = 0, is_detached: bool = False, **options: Any) -> Draft:
    on_disconnect = OnDisconnect.DETACH if is_detached else OnDisconnect.CANCEL
    made = Options(7, 4, 1.0, idempotency_key=key, on_disconnect=on_disconnect, **options)
    operation = Operation.EDIT if references else Operation.GENERATE
    return Draft(operation, "a star", (b"file",) * references, Size(64, 64), made, is_seed_drawn=False)


async def told(stream: Stream) -> list[Event]:
    """All that its reader is told. Raises what ended it."""
    return [event async for event in stream.reader.events()]
