"""How a request gets in: a place in the queue, its caller's quota, its references decoded; or nothing is left of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
class Received:
    """A request that has its place and its caller's leave."""

    request: Request
    place: Place
    grant: Grant


class Reception:
    """Bounds what waits, and reads it."""

    def __init__(self, backend: Backend, intake: Intake, quota: SharedQuota, config: Config):
        self._backend, self._intake, self._quota = backend, intake, quota
        self._places = Places(config.queue_requests_max, config.queue_bytes_max, lambda: backend.load().busy_seconds)

    @asynccontextmanager
    async def receive(self, draft: Draft, asked: Asked, *, is_free: bool) -> AsyncIterator[Received]:
        """Take the request in for the block; where that fails, or the block, its place and its leave are given back.

        `is_free`: its megapixels were taken before. Raises: QueueFull, QuotaExceeded, a RefusedReference, InvalidField.
        """
        place = self._places.take(asked.held_bytes)
        try:
            grant = await self._quota.admit(asked.caller, 0 if is_free else self._megapixels(draft))
            try:
                yield Received(await self._read(draft, asked, place), place, grant)
            except BaseException:
                grant.release(ran=False, by_server=False)
                raise
        except BaseException:
            place.leave()
            raise

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
