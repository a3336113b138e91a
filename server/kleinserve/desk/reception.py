"""How a request gets in: a place in the queue, its caller's quota, its references decoded; or nothing is left of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from kleinserve.backend.backend import Backend
from kleinserve.config import Config
from kleinserve.core import Accepted, Admitted, Caller, Draft, ModelFacts, Reference, Request, Usage
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.places import Place, Places
from kleinserve.desk.quota import SharedQuota
from kleinserve.identity.limits import Grant


@dataclass(frozen=True)
class Asked:
    """One call for an image. `turn`: whose turn it is when references are decoded; `held_bytes`: of its message, or its
    share of the bundle's.
    """

    request_id: str
    caller: Caller
    turn: str
    deadline: float | None  # on the event loop's clock
    held_bytes: int
    arrived_microseconds: int
    bundle: Bundle = field(default_factory=Bundle)


class Intake(Protocol):
    """Decodes references apart. Raises: the first bad one's RefusedReference."""

    async def decode(self, turn: str, references: tuple[bytes, ...], *, keep_alpha: bool) -> tuple[Reference, ...]: ...


@dataclass(frozen=True)
class Entrance:
    """What a request has before anything is done for it: its place, and one of its caller's slots."""

    place: Place
    grant: Grant


class Reception:
    """Bounds what waits, and reads it."""

    def __init__(self, backend: Backend, intake: Intake, quota: SharedQuota, config: Config):
        self._backend, self._intake, self._quota = backend, intake, quota
        self._places = Places(config.queue_requests_max, config.queue_bytes_max, lambda: backend.load().busy_seconds)

    @contextmanager
    def enter(self, asked: Asked) -> Iterator[Entrance]:
        """Let the request in for the block; where the block fails all is given back, and what was charged.

        Raises: QueueFull, QuotaExceeded, before anything has been done for it.
        """
        place = self._places.take(asked.held_bytes)
        try:
            grant = self._quota.join(asked.caller)
            try:
                yield Entrance(place, grant)
            except BaseException:
                grant.release(ran=False, by_server=False)
                raise
        except BaseException:
            place.leave()
            raise

    async def receive(self, draft: Draft, asked: Asked, entrance: Entrance, *, is_free: bool) -> Request:
        """Charge its megapixels, unless they were taken before (`is_free`), and decode its references.

        Raises: QuotaExceeded, LedgerUnavailable, a RefusedReference, QueueFull, InvalidField.
        """
        if not is_free:
            await self._quota.charge(entrance.grant, asked.caller, self._megapixels(draft))
        return await self._read(draft, asked, entrance.place)

    def _megapixels(self, draft: Draft) -> int:
        """Of the output; where a reference decides the size it is one, since the model sees no larger one."""
        if draft.size is None and draft.references:
            return 1
        return (draft.size or self._backend.facts.default_size).megapixels

    async def _read(self, draft: Draft, asked: Asked, place: Place) -> Request:
        """The request with its references decoded."""
        facts = self._backend.facts
        references: tuple[Reference, ...] = ()
        if draft.references:
            keep_alpha = facts.has_native_alpha
            decode = partial(self._intake.decode, asked.turn, draft.references, keep_alpha=keep_alpha)
            references = await asked.bundle.references(decode)
            together = sum(len(reference.pixels.data) for reference in references)
            place.grow(-(-together // asked.bundle.count))
        return draft.request(asked.request_id, asked.caller.name, facts, references)


def accept(request: Request, admitted: Admitted, facts: ModelFacts, used: Usage) -> Accepted:
    """What a stream begins with, of a request that a backend has taken."""
    return Accepted(
        seed=request.options.seed,
        size=request.size,
        steps=request.options.steps,
        guidance_scale=request.options.guidance_scale,
        model=facts.name,
        reference_sizes=request.reference_sizes,
        prompt_tokens=min(admitted.prompt_tokens, facts.prompt_tokens_max),
        prompt_truncated=admitted.is_truncated,
        estimated_wait=admitted.estimated_wait,
        estimated_duration=admitted.estimated_duration,
        estimated_usage=replace(used, billable=False),
    )
