"""What a request takes of its caller's megapixels, and when it comes back, by a clock of its own (desk/quota.py)."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from kleinserve.core import Caller, Draft, Failed, Size
from kleinserve.desk.desk import Stream
from kleinserve.errors import (
    AcceleratorOutOfMemory,
    DeadlineImpossible,
    Draining,
    KleinError,
    QuotaExceeded,
    ReferenceUnreadable,
)

from tests.desk.requests import SPENT
from tests.desk.stage import ASKED, Stage, drafted

FOUR = Caller("web", megapixels_per_minute=4)
SECOND, MILLISECOND = 10**9, 10**6


def large(key: str = "", *, references: int = 0) -> Draft:
    """A request of four megapixels."""
    return replace(drafted(key, references=references), size=Size(2048, 2048))


async def refused(stage: Stage, draft: Draft) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await stage.open("refused", draft=draft, caller=FOUR)
    assert (caught.value.limit, caught.value.value) == ("megapixels_per_minute", 4)
    return caught.value


async def test_to_the_megapixel(stage: Stage) -> None:
    """Four a minute: four fit and the fifth does not; it fits a quarter of a minute later, not a millisecond before."""
    for name in "abcd":
        await stage.open(name, caller=FOUR)
    assert (await refused(stage, drafted())).retry_seconds == 15.0
    stage.clock.now = 15 * SECOND - MILLISECOND
    assert (await refused(stage, drafted())).retry_seconds == 0.001
    stage.clock.now = 15 * SECOND
    await stage.open("e", caller=FOUR)
    assert (await refused(stage, drafted())).retry_seconds == 15.0


async def test_a_reader_takes_none(stage: Stage) -> None:
    """The same request again, and Attach, read what was paid for."""
    await stage.open("a", draft=large("k"), caller=FOUR)
    await stage.open("b", draft=large("k"), caller=FOUR)
    await stage.desk.attach("k", replace(ASKED, caller=FOUR))
    assert (await refused(stage, drafted())).retry_seconds == 15.0


def _draw(stage: Stage, stream: Stream) -> None:
    stage.start()
    stage.draw()


def _start_and(end: Callable[[Stage, Stream], object]) -> Callable[[Stage, Stream], None]:
    def ending(stage: Stage, stream: Stream) -> None:
        stage.start()
        end(stage, stream)

    return ending


ENDINGS: dict[str, tuple[Callable[[Stage, Stream], object], bool]] = {
    "is left in the queue": (lambda stage, stream: stage.desk.leave(stream), True),
    "is left after its first step": (_start_and(lambda stage, stream: stage.desk.leave(stream)), False),
    "is late after its first step": (_start_and(lambda stage, stream: stage.desk.jobs._expire(stream.job)), False),
    "is cancelled by an operator": (_start_and(lambda stage, stream: stage.desk.jobs.cancel_request("a")), True),
    "is drained": (_start_and(lambda stage, stream: stage.desk.jobs.end(stream.job, Draining())), True),
    "fails": (
        _start_and(lambda stage, _: stage.backend.tell("a", Failed(AcceleratorOutOfMemory("too large"), SPENT))),
        True,
    ),
    "is drawn": (_draw, False),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_what_comes_back(stage: Stage, how: str) -> None:
    """All where no step ran or the server ended it, but for what the time has repaid already; else the time repays."""
    stream = await stage.open("a", draft=large(), caller=FOUR)
    stage.clock.now = 15 * SECOND
    assert (await refused(stage, large())).retry_seconds == 45.0
    end, comes_back = ENDINGS[how]
    end(stage, stream)
    for name in stage.backend.cancelled:
        stage.backend.stop(name)
    await stage.idle()
    if not comes_back:
        assert (await refused(stage, large())).retry_seconds == 45.0
        stage.clock.now = 60 * SECOND
    await stage.open("b", draft=large(), caller=FOUR)
    assert (await refused(stage, drafted())).retry_seconds == 15.0


@pytest.mark.parametrize("error", [ReferenceUnreadable(0, "truncated"), DeadlineImpossible("9 s are needed")])
async def test_what_is_refused_costs_nothing(stage: Stage, error: KleinError) -> None:
    """Also where its megapixels had been taken before it was refused, or where its caller gave up meanwhile."""
    stage.intake.refusal = error if isinstance(error, ReferenceUnreadable) else None
    stage.backend.refusal = error
    with pytest.raises(type(error)):
        await stage.open("a", draft=large(references=1), caller=FOUR)
    stage.intake.refusal = stage.backend.refusal = None
    stage.intake.gate.clear()
    opening = asyncio.ensure_future(stage.open("b", draft=large(references=1), caller=FOUR))
    await stage.until(lambda: stage.waiting)
    assert (await refused(stage, drafted())).retry_seconds == 15.0
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await stage.open("c", draft=large(), caller=FOUR)
