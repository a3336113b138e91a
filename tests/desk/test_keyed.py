"""Requests with a key on the desk: joined, attached to, cancelled, kept and drawn again (desk/{desk,keys}.py)."""

import asyncio
from dataclasses import replace

import pytest
from kleinserve.core import (
    Accepted,
    EncodedImage,
    Outcome,
    Priority,
    Size,
)
from kleinserve.desk.job import READERS_MAX
from kleinserve.desk.job import Stage as JobStage
from kleinserve.desk.keys import FILE_BYTES, RAW_CHANNELS
from kleinserve.errors import (
    Cancelled,
    IdempotencyKeyReused,
    QueueFull,
    QuotaExceeded,
    ResultGone,
    UnknownKey,
)
from kleinserve.usage.keys import KeyState

from tests.desk.requests import IMAGE
from tests.desk.stage import ASKED, LIMITED, Stage, drafted, told


async def test_the_same_request_joins_the_running_job(stage: Stage) -> None:
    """It is drawn and settled once; both get the image; the later one is told that it is a replay."""
    first = await stage.open(draft=drafted("k", client_tag="one"))
    second = await stage.open("b", draft=drafted("k", client_tag="two"))
    assert second.job is first.job
    assert (first.reader.terms.client_tag, second.reader.terms.client_tag) == ("one", "two")
    stage.start()
    stage.draw()
    mine, theirs = await told(first), await told(second)
    assert mine[-2:] == theirs[-2:]
    assert isinstance(mine[0], Accepted)
    assert theirs[0] == replace(mine[0], is_replay=True)
    assert (len(stage.backend.submitted), len(stage.ledger.records)) == (1, 1)
    assert stage.counted("klein_replays_total", kind="attached") == 1


async def test_the_same_at_once_waits_for_the_first(stage: Stage) -> None:
    """While the first is still read, the second is held; admitted they are one job."""
    stage.intake.gate.clear()
    opening = [asyncio.ensure_future(stage.open(name, draft=drafted("k", references=1))) for name in "ab"]
    await stage.until(lambda: stage.waiting)
    stage.intake.gate.set()
    first, second = await asyncio.gather(*opening)
    assert first.job is second.job


async def test_the_second_takes_over_when_the_first_is_refused(stage: Stage) -> None:
    """Whoever waited for a request that came to nothing is served itself."""
    stage.intake.gate.clear()
    first, second = (asyncio.ensure_future(stage.open(name, draft=drafted("k", references=1))) for name in "ab")
    await stage.until(lambda: stage.waiting)
    first.cancel()
    stage.intake.gate.set()
    stream = await second
    assert [request.request_id for request, _ in stage.backend.submitted] == ["b"]
    assert not (await anext(stream.reader.events())).is_replay  # type: ignore[union-attr]


async def test_as_many_wait_for_a_key_as_may_read_it(stage: Stage) -> None:
    """One more is refused while the first is read, and holds no place."""
    stage.intake.gate.clear()
    same = [asyncio.create_task(stage.open(f"r{n}", draft=drafted("k", references=1))) for n in range(READERS_MAX + 1)]
    await stage.until(lambda: (held := stage.ring._held.get(("anonymous", "k"))) and held.waiting == READERS_MAX)
    with pytest.raises(QueueFull, match="wait for this key"):
        await stage.open("late", draft=drafted("k", references=1))
    assert stage.waiting == READERS_MAX + 1
    stage.intake.gate.set()
    *_, last = await asyncio.gather(*same, return_exceptions=True)
    assert isinstance(last, QueueFull)  # the first reads it too
    assert stage.waiting == 1


async def test_without_a_place_no_key_is_looked_at() -> None:
    """A refusal is cheap with a key too: nothing is hashed, asked of the database, or remembered."""
    stage = Stage(queue_requests_max=1)
    await stage.open("a")
    with pytest.raises(QueueFull):
        await stage.open("b", draft=drafted("k"))
    assert await stage.keys.find("anonymous", "k") is None


async def test_another_request_under_the_key_is_refused_and_leaves_it(stage: Stage) -> None:
    """The running job and its key are as before."""
    first = await stage.open(draft=drafted("k"))
    with pytest.raises(IdempotencyKeyReused):
        await stage.open("b", draft=replace(drafted("k"), prompt="a moon"))
    assert (await stage.open("c", draft=drafted("k"))).job is first.job


async def test_readers_are_bounded_and_count_for_their_caller(stage: Stage) -> None:
    """A job has eight at most, and each takes one of its caller's requests until it leaves."""
    caller = replace(LIMITED, requests_max=READERS_MAX + 1)
    streams = [await stage.open(str(i), draft=drafted("k"), caller=caller) for i in range(READERS_MAX)]
    with pytest.raises(QueueFull):
        await stage.open("too many", draft=drafted("k"), caller=caller)
    await stage.open("beside", caller=caller)
    with pytest.raises(QuotaExceeded):
        await stage.open("more", caller=caller)
    stage.desk.leave(streams[-1])
    await stage.open("again", draft=drafted("k"), caller=caller)


async def test_a_joining_reader_that_asks_to_detach_reserves_room(stage: Stage) -> None:
    """Then the job outlives its readers; where there is no room the reader is refused and takes nothing."""
    first = await stage.open(draft=drafted("k"))
    await stage.open("b", draft=drafted("k", is_detached=True))
    assert stage.shelf.bytes == RAW_CHANNELS * 64 * 64 + FILE_BYTES
    for reader in list(first.job.readers):
        stage.desk.leave(replace(first, reader=reader))
    assert stage.backend.cancelled == []

    large = replace(drafted("l"), size=Size(1024, 1024))
    await stage.open("c", draft=large, caller=replace(LIMITED, requests_max=2))
    detached = replace(drafted("l", is_detached=True), size=Size(1024, 1024))
    for _ in range(2):  # a slot that was not given back would be missed the second time
        with pytest.raises(QueueFull):
            await stage.open("d", draft=detached, caller=replace(LIMITED, requests_max=2))


async def test_attach_follows_what_runs_without_urgency_of_its_own(stage: Stage) -> None:
    """Its priority is the lowest, its deadline its own; a caller sees only its own keys."""
    first = await stage.open(draft=drafted("k", priority=Priority.STANDARD))
    stream = await stage.desk.attach("k", replace(ASKED, request_id="b"))
    assert stream.job is first.job
    assert stream.job.priority is Priority.STANDARD
    with pytest.raises(UnknownKey):
        await stage.desk.attach("k", replace(ASKED, caller=LIMITED))


async def reach(stage: Stage, where: str) -> None:
    """Bring the job of key k, opened as "a", so far."""
    if where == "waiting":
        return
    stage.start()
    if where == "running":
        return
    stage.ledger.gate.clear()
    stage.draw()
    await asyncio.sleep(0)
    if where == "committing":
        return
    stage.ledger.gate.set()
    await stage.idle()


@pytest.mark.parametrize("where", ["waiting", "running"])
async def test_cancelled_by_its_key_before_the_commit(stage: Stage, where: str) -> None:
    """The readers are told, the backend stops, nothing is billed, and the key is free for a new job."""
    stream = await stage.open(draft=drafted("k"))
    await reach(stage, where)
    await stage.desk.cancel("k", ASKED.caller)
    with pytest.raises(Cancelled, match="by its key"):
        await told(stream)
    stage.desk.leave(stream)
    assert stage.backend.cancelled == ["a"]
    stage.backend.stop("a")
    await stage.idle()
    assert [record.outcome for record in stage.ledger.records] == [Outcome.CANCELLED]
    again = await stage.open("b", draft=drafted("k"))
    assert again.job is not stream.job


@pytest.mark.parametrize("where", ["committing", "kept"])
async def test_cancelled_by_its_key_after_the_commit_began(stage: Stage, where: str) -> None:
    """The record stays, the image and the key do not; a second cancel knows nothing."""
    stream = await stage.open(draft=drafted("k"))
    await reach(stage, where)
    await stage.desk.cancel("k", ASKED.caller)
    stage.ledger.gate.set()
    with pytest.raises(Cancelled):
        await told(stream)
    stage.desk.leave(stream)
    await stage.idle()
    assert (stream.job.image, stage.shelf.bytes, stage.gauges) == (None, 0, (0, 0))
    assert await stage.keys.find("anonymous", "k") is None
    with pytest.raises(UnknownKey):
        await stage.desk.cancel("k", ASKED.caller)


async def test_who_leaves_during_the_commit_has_paid_and_can_fetch(stage: Stage) -> None:
    """The image is settled and kept for its key; the second stream is a replay at no price."""
    stream = await stage.open(draft=drafted("k"))
    await reach(stage, "committing")
    assert stage.desk.leave(stream) is JobStage.RUNNING
    stage.ledger.gate.set()
    await stage.idle()
    assert stage.backend.cancelled == []
    again = await stage.open("b", draft=drafted("k"))
    assert EncodedImage in [type(event) for event in await told(again)]
    assert [record.outcome for record in stage.ledger.records] == [Outcome.DELIVERED]
    assert stage.counted("klein_cost_microusd_total", caller="anonymous", operation="generate") == 14_000
    assert stage.counted("klein_replays_total", kind="replayed") == 1


async def test_delivered_and_pushed_off_the_shelf_is_gone() -> None:
    """The same request again, and attach, are told what was recorded; nothing is drawn."""
    stage = Stage(kept_bytes_max=8 * len(IMAGE.data))
    stream = await stage.open(draft=drafted("k"))
    stage.start()
    stage.draw()
    await told(stream)
    stage.desk.delivered(stream)
    stage.desk.leave(stream)
    other = await stage.open("b", draft=drafted("l"))
    stage.start("b")
    stage.draw("b")
    await told(other)
    for asking in (stage.open("c", draft=drafted("k")), stage.desk.attach("k", ASKED)):
        with pytest.raises(ResultGone) as caught:
            await asking
        assert caught.value.metadata["cost_microusd"] == "14000"
    assert len(stage.backend.submitted) == 2


async def test_billed_and_never_delivered_it_is_drawn_again_for_nothing(stage: Stage) -> None:
    """Under its own id, with its seed and its first price; no second record, and its failure leaves it billed."""
    stage = Stage(kept_bytes_max=0)
    stream = await stage.open(draft=drafted("k"))
    stage.start()
    stage.draw()
    await stage.idle()
    stage.desk.leave(stream)
    again = await stage.open("b", draft=replace(drafted("k")))
    request, _ = stage.backend.submitted[-1]
    assert (request.request_id, request.options.seed, again.job.is_redraw) == ("a", 7, True)
    stage.start("a")
    stage.draw("a")
    events = await told(again)
    assert isinstance(events[0], Accepted)
    assert events[0].is_replay
    stage.desk.delivered(again)
    stage.desk.leave(again)
    await stage.idle()
    assert len(stage.ledger.records) == 1
    entry = await stage.keys.find("anonymous", "k")
    assert entry is not None
    assert entry.state is KeyState.DELIVERED


@pytest.mark.parametrize("where", ["waiting", "running", "kept"])
async def test_cancelled_while_it_is_drawn_again(where: str) -> None:
    """The record stays, and the key is free: another request may have it."""
    stage = Stage(kept_bytes_max=0)
    stream = await stage.open(draft=drafted("k"))
    await reach(stage, "kept")
    stage.desk.leave(stream)
    again = await stage.open("b", draft=drafted("k"))
    assert again.job.is_redraw
    await reach(stage, where)
    await stage.desk.cancel("k", ASKED.caller)
    with pytest.raises(Cancelled, match="by its key"):
        await told(again)
    stage.desk.leave(again)
    if where != "kept":
        stage.backend.stop("a")
    await stage.idle()
    assert [record.outcome for record in stage.ledger.records] == [Outcome.DELIVERED]
    other = await stage.open("c", draft=drafted("k", client_tag="x", references=1))
    assert not other.job.is_redraw
