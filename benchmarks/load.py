"""The load: requests leave at their times, whatever has been answered. Knows no contestant.

One asyncio process beside the servers. Images are hashed, not decoded, so that it takes little of their cores.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import wire
from benchmarks.trace import Arrival

OK, REFUSED = wire.OK, wire.REFUSED


@dataclass(frozen=True)
class Outcome:
    """How one request went; times are from its scheduled arrival. `code`: gRPC's name, REFUSED or BROKEN."""

    at_seconds: float
    edge: int
    is_edit: bool
    code: str
    seconds: float
    first_preview_seconds: float | None
    sent_late_seconds: float


def play(target: str, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Every arrival at its time, all answers awaited."""
    return asyncio.run(open_loop(target, arrivals))


def play_one_by_one(target: str, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Every arrival when the one before is answered."""
    return asyncio.run(closed_loop(target, arrivals, 1))


async def open_loop(target: str, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Every arrival at its time, all answers awaited."""
    async with wire.to(target) as ask:
        questions = [ask(arrival) for arrival in arrivals]  # encoded before the clock starts
        start = asyncio.get_running_loop().time()
        return await asyncio.gather(*(_follow(q, a, start) for q, a in zip(questions, arrivals, strict=True)))


async def closed_loop(
    target: str, arrivals: Sequence[Arrival], clients: int, seconds: float = float("inf")
) -> list[Outcome]:
    """So many clients, each of which takes the next arrival when it is answered; none is taken after `seconds`."""
    async with wire.to(target) as ask:
        pairs = iter([(ask(arrival), arrival) for arrival in arrivals])
        clock = asyncio.get_running_loop().time
        start = clock()
        found: list[Outcome] = []

        async def client() -> None:
            while clock() < start + seconds and (pair := next(pairs, None)) is not None:
                found.append(await _follow(pair[0], replace(pair[1], at_seconds=clock() - start), start))

        await asyncio.gather(*(client() for _ in range(clients)))
        return found


async def _follow(question: wire.Question, arrival: Arrival, start: float) -> Outcome:
    clock, due = asyncio.get_running_loop().time, start + arrival.at_seconds
    await asyncio.sleep(max(0.0, due - clock()))
    late, first_preview, code = clock() - due, None, wire.BROKEN
    async for happened in question():
        if happened is wire.PREVIEW:
            first_preview = clock() - due if first_preview is None else first_preview
        else:
            code = happened
    return Outcome(arrival.at_seconds, arrival.edge, arrival.is_edit, code, clock() - due, first_preview, late)
