"""Images of one message (desk/bundle.py): decoded once, settled together, or not at all."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from kleinserve.core import Accepted, Completed, Failed, Outcome, Progress, Started
from kleinserve.desk.bundle import Bundle
from kleinserve.desk.desk import Stream
from kleinserve.errors import (
    AcceleratorOutOfMemory,
    Cancelled,
    DeadlinePassed,
    Draining,
    Internal,
    KleinError,
    LedgerUnavailable,
)

from tests.desk.requests import SPENT, job
from tests.desk.stage import ASKED, Stage, drafted, told
from tests.desk.test_books import new

NAMES = ("a", "b", "c")
FAILURE = AcceleratorOutOfMemory("too large")


async def opened(stage: Stage, key: str = "", *, references: int = 0, deadline: float | None = None) -> list[Stream]:
    """Three images of one message, admitted and started."""
    bundle, streams = Bundle(len(NAMES)), []
    for name in NAMES:
        draft = drafted(f"{key}/{name}" if key else "", references=references)
        streams.append(await stage.open(name, draft=draft, bundle=bundle, deadline=deadline))
        stage.start(name)
    return streams


async def test_they_are_recorded_in_one_commit(stage: Stage) -> None:
    """Nobody gets an image before the last is drawn; then all are recorded at once, and all are delivered."""
    streams = await opened(stage)
    for name in NAMES[:2]:
        stage.draw(name)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (stage.ledger.records, [stream.job.image for stream in streams]) == ([], [None] * 3)
    stage.draw("c")
    assert [type((await told(stream))[-1]) for stream in streams] == [Completed] * 3
    assert stage.ledger.together == [3]
    assert stage.counted("klein_cost_microusd_total", caller="anonymous", operation="generate") == 42_000
    for stream in streams:
        stage.desk.leave(stream)
    assert (stage.desk.jobs.shown(), stage.gauges, stage.waiting, stage.desk.jobs._bundle) == ([], (0, 0), 0, {})


async def test_references_are_decoded_and_counted_once(stage: Stage) -> None:
    """Each of the three counts its share of what was decoded for all; alone an image counts the whole."""
    places, pixels = stage.desk._reception._places, 2 * 96 * 64 * 3
    bundle = Bundle(3)
    for name in NAMES:
        await stage.open(name, draft=drafted(references=2), bundle=bundle)
    assert stage.intake.decoded == 2
    assert places.bytes == 3 * ASKED.held_bytes + pixels
    assert [len(request.references) for request, _ in stage.backend.submitted] == [2, 2, 2]
    await stage.open("d", draft=drafted(references=2))
    assert places.bytes == 4 * ASKED.held_bytes + 2 * pixels
    assert bundle._references is None  # nobody asks for them any more


ENDINGS: dict[str, tuple[Callable[[Stage, Stream], object], type[KleinError]]] = {
    "fails": (
        lambda stage, _: stage.backend.tell("b", Failed(FAILURE, SPENT)),
        AcceleratorOutOfMemory,
    ),
    "is left": (lambda stage, stream: stage.desk.leave(stream), Cancelled),
    "is cancelled": (lambda stage, stream: stage.desk.jobs.cancel_request("b"), Cancelled),
    "is late": (lambda stage, stream: stage.desk.jobs._expire(stream.job), DeadlinePassed),
    "is drained": (lambda stage, stream: stage.desk.jobs.end(stream.job, Draining()), Draining),
}


DRAWN: list[tuple[str, ...]] = [(), ("a",), ("a", "b"), ("a", "c")]
CASES = [(how, drawn) for how in ENDINGS for drawn in DRAWN if how != "fails" or "b" not in drawn]


@pytest.mark.parametrize(("how", "drawn"), CASES)
async def test_where_one_ends_all_do(stage: Stage, how: str, drawn: tuple[str, ...]) -> None:
    """For the same reason, drawn or not. The backend stops what it still draws; nothing is billed; all is recorded."""
    streams = await opened(stage, "key")
    for name in drawn:
        stage.draw(name)
    end, error = ENDINGS[how]
    end(stage, streams[1])
    running = {name for name in NAMES if name not in drawn}
    assert {stream.job.error.__class__ for stream in streams} == {error}
    assert set(stage.backend.cancelled) == running - ({"b"} if how == "fails" else set())
    for name in stage.backend.cancelled:
        stage.backend.stop(name)
    await stage.idle()
    assert sorted(record.request_id for record in stage.ledger.records) == list(NAMES)
    assert {record.usage.billable for record in stage.ledger.records} == {False}
    assert (stage.gauges, stage.waiting, stage.ring._held, stage.desk.jobs._bundle) == ((0, 0), 0, {}, {})
    for stream in streams:
        if stream.reader in stream.job.readers:  # who has left hears nothing
            with pytest.raises(error):
                await told(stream)


async def test_what_is_drawn_after_one_has_failed_is_not_billed(stage: Stage) -> None:
    """A backend that could not stop in time."""
    streams = await opened(stage)
    stage.desk.jobs.end(streams[0].job, Draining())
    for name in NAMES:
        stage.draw(name)
    await stage.idle()
    assert {record.outcome for record in stage.ledger.records} == {Outcome.FAILED}


@pytest.mark.parametrize("failure", [LedgerUnavailable(), RuntimeError("a bug")])
async def test_where_the_commit_fails_nobody_gets_an_image(stage: Stage, failure: Exception) -> None:
    """All are told the same; without their record none is sent."""
    streams = await opened(stage)
    stage.ledger.failure = failure
    for name in NAMES:
        stage.draw(name)
    for stream in streams:
        with pytest.raises(LedgerUnavailable if isinstance(failure, LedgerUnavailable) else Internal):
            await told(stream)
    assert stage.counted("klein_cost_microusd_total", caller="anonymous", operation="generate") == 0


async def test_what_waits_for_the_others_is_not_silent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten seconds, and again and again, its readers hear how long the others take yet; attached ones too."""
    streams = await opened(stage, "key")
    stage.backend.tell("a", Progress(4, 4, 0.2))
    stage.draw("a")
    assert stage.desk.jobs._silence[streams[0].job].when() == streams[0].job.told + 10.0
    monkeypatch.setattr("kleinserve.desk.jobs._SILENCE_SECONDS", 0.001)
    stage.backend.tell("b", Progress(4, 4, 0.2))
    stage.draw("b")
    attached = await stage.desk.attach("key/b", replace(ASKED, request_id="d"))
    for stream in (streams[1], attached):
        events = stream.reader.events()
        async with asyncio.timeout(30):
            told = [await anext(events) for _ in range(5)]
        assert [type(event) for event in told] == [Accepted, Started, Progress, Progress, Progress]
        assert told[3:] == [Progress(4, 4, 1.0)] * 2  # what "c" was foreseen to take
    stage.draw("c")
    await stage.idle()
    assert {stream.job.error for stream in streams} == {None}
    assert stage.desk.jobs._silence == {}


async def test_what_runs_for_another_is_waited_for(stage: Stage) -> None:
    """An image whose key has a job already is settled with that one, and the bundle's own when it is drawn too."""
    other = await stage.open("other", draft=drafted("key/a"))
    stage.start("other")
    streams = await opened_with_a_joined(stage)
    assert streams[0].job is other.job
    for name in NAMES[1:]:
        stage.draw(name)
    await asyncio.sleep(0)
    assert stage.ledger.records == []
    stage.draw("other")
    assert [type((await told(stream))[-1]) for stream in streams] == [Completed] * 3
    assert sorted(stage.ledger.together) == [1, 2]


async def test_what_ends_for_another_ends_all(stage: Stage) -> None:
    """Also where its job has other readers: without it the answer would not be whole."""
    await stage.open("other", draft=drafted("key/a"))
    stage.start("other")
    streams = await opened_with_a_joined(stage)
    stage.draw("b")
    stage.backend.tell("other", Failed(FAILURE, SPENT))
    assert {stream.job.error.__class__ for stream in streams} == {AcceleratorOutOfMemory}
    assert stage.backend.cancelled == ["c"]


async def opened_with_a_joined(stage: Stage) -> list[Stream]:
    bundle, streams = Bundle(len(NAMES)), []
    for name in NAMES:
        streams.append(await stage.open(name, draft=drafted(f"key/{name}"), bundle=bundle))
        if name != "a":
            stage.start(name)
    return streams


async def test_a_lost_key_leaves_nothing_recorded(url: str) -> None:
    """In a real ledger: of three keys one is another's now, so that no image is billed and no key committed."""
    opened = await new(url)
    jobs = [job(), job(), job()]
    for name, made in zip(NAMES, jobs, strict=True):
        made.record_id, made.spent = f"record {name}", SPENT
        made.entry = (await opened.keys.claim("anonymous", name, b"digest", "a", 7)).entry
    assert jobs[1].entry is not None
    opened.keys.forget(jobs[1].entry)
    with pytest.raises(LedgerUnavailable, match="another server"):
        await opened.books.settle(*jobs)
    assert (await opened.records(), opened.paid) == ([], None)
    jobs[1].entry = (await opened.keys.claim("anonymous", "b", b"digest", "a", 7)).entry
    for made in jobs:
        made.is_redraw = False
    await opened.books.settle(*jobs)
    await opened.books.settle(*jobs[1:])  # again changes nothing in the ledger
    assert [record.record_id for record in await opened.records()] == ["record a", "record b", "record c"]
    await opened.books.close()
