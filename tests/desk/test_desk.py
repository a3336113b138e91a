"""A request's way over the desk to its one ending, and what is left of it (desk/reception.py)."""

import asyncio
from dataclasses import replace

import pytest
from kleinserve.backend.backend import State
from kleinserve.core import (
    Accepted,
    Completed,
    EncodedImage,
    Failed,
    Outcome,
    Preview,
    PreviewFormat,
    PreviewOptions,
    Priority,
    Progress,
    Queued,
    Size,
    Started,
)
from kleinserve.desk.job import Stage as JobStage
from kleinserve.desk.keys import FILE_BYTES, RAW_CHANNELS
from kleinserve.errors import (
    AcceleratorOutOfMemory,
    Cancelled,
    DeadlineImpossible,
    DeadlinePassed,
    Draining,
    Internal,
    InvalidField,
    KleinError,
    LedgerUnavailable,
    NotReady,
    QueueFull,
    QuotaExceeded,
    ReferenceUnreadable,
)

from tests.desk.requests import IMAGE, SPENT, preview
from tests.desk.stage import LIMITED, Stage, drafted, told


async def test_from_open_to_completed(stage: Stage) -> None:
    """The backend gets the resolved request; the reader is told all; the record is written once, as delivered."""
    stream = await stage.open(draft=drafted(references=2), deadline=asyncio.get_running_loop().time() + 60)
    request, left = stage.backend.submitted[0]
    assert request.reference_sizes == (Size(96, 64), Size(96, 64))
    assert left is not None
    assert 50 < left <= 60
    assert stage.gauges == (1, 0)
    stage.backend.tell("a", Queued(0, 0.1))
    stage.start()
    assert stage.gauges == (0, 1)
    stage.backend.tell("a", Progress(4, 4, 0.0), preview(4))
    stage.draw()
    events = await told(stream)
    assert [type(event) for event in events] == [Accepted, Started, Progress, Preview, EncodedImage, Completed]
    accepted = events[0]
    assert isinstance(accepted, Accepted)
    assert (accepted.model, accepted.prompt_tokens, accepted.estimated_duration) == ("scripted", 3, 1.0)
    assert (accepted.estimated_usage.billable, accepted.estimated_usage.reference_megapixels) == (False, 2)
    stage.desk.delivered(stream)
    assert stage.desk.leave(stream) is JobStage.DELIVERING
    assert stage.gauges == (0, 0)
    assert stream.job.image is None  # nobody keeps it
    assert stage.desk.jobs.shown() == []
    [record] = stage.ledger.records
    assert (record.outcome, record.usage.billable, record.references, record.steps_run) == (
        Outcome.DELIVERED, True, 2, 4,
    )  # fmt: skip


LATENT = PreviewOptions(format=PreviewFormat.LATENT)
REFUSALS: list[tuple[str, KleinError]] = [
    ("backend", DeadlineImpossible("9 s are needed")),
    ("intake", ReferenceUnreadable(0, "truncated")),
    ("draft", InvalidField()),
    ("place", QueueFull("full")),
    ("shelf", QueueFull("full")),
    ("lifecycle", Draining()),
    ("ledger", LedgerUnavailable()),
]


@pytest.mark.parametrize(("where", "error"), REFUSALS, ids=[where for where, _ in REFUSALS])
async def test_nothing_is_left_of_what_is_refused(where: str, error: KleinError) -> None:
    """Wherever it is refused: no place, no job, no slot of its caller and no key are taken by it."""
    stage = Stage(**({"queue_bytes_max": 150} if where == "place" else {}))
    draft = drafted("k", references=1, is_detached=where == "shelf")
    match where:
        case "backend":
            stage.backend.refusal = error
        case "intake":
            stage.intake.refusal = error
        case "draft":
            draft = replace(draft, size=Size(2048, 2048), options=replace(draft.options, preview=LATENT))
        case "place":
            await stage.open("other")
        case "shelf":
            draft = replace(draft, size=Size(1024, 1024))
        case "lifecycle":
            stage.lifecycle.become(State.DRAINING)
        case "ledger":
            stage.ledger.is_up = False
    places = stage.waiting
    with pytest.raises(type(error)):
        await stage.open(draft=draft, caller=LIMITED)
    assert stage.waiting == places
    assert [job["request_id"] for job in stage.desk.jobs.shown() if job["request_id"] == "a"] == []
    assert await stage.keys.find("web", "k") is None
    assert (stage.ring._held, stage.shelf.bytes) == ({}, 0)
    stage.desk._quota.join(LIMITED).release(ran=False, by_server=False)
    assert stage.ledger.records == []


async def test_before_the_warm_up_nothing_is_taken() -> None:
    """A server that starts says so, and one that is ready does not."""
    stage = Stage()
    stage.desk.check()
    stage.lifecycle.state = State.STARTING
    with pytest.raises(NotReady):
        stage.desk.check()


async def test_who_gives_up_while_it_is_read_leaves_nothing(stage: Stage) -> None:
    """A call that is cancelled while its references are decoded gives everything back, its key too."""
    stage.intake.gate.clear()
    opening = asyncio.ensure_future(stage.open(draft=drafted("k", references=1), caller=LIMITED))
    await stage.until(lambda: stage.waiting)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (stage.waiting, stage.ring._held) == (0, {})
    assert await stage.keys.find("web", "k") is None


async def test_a_running_place_is_free_for_the_next(stage: Stage) -> None:
    """What has started no longer waits: only waiting requests count against the queue."""
    stage = Stage(queue_requests_max=1)
    await stage.open("a")
    with pytest.raises(QueueFull):
        await stage.open("b")
    stage.start("a")
    await stage.open("b")


@pytest.mark.parametrize("is_started", [False, True])
async def test_the_last_reader_s_leaving_ends_the_job(stage: Stage, is_started: bool) -> None:
    """The backend is told to stop; when it has, the record says CANCELLED and what was spent, and nobody pays."""
    stream = await stage.open(draft=drafted("k"))
    if is_started:
        stage.start()
    assert stage.desk.leave(stream) is (JobStage.RUNNING if is_started else JobStage.WAITING)
    assert (stage.backend.cancelled, stage.gauges) == (["a"], (0, 0))
    assert await stage.keys.find("anonymous", "k") is None
    stage.backend.stop("a")
    await stage.idle()
    [record] = stage.ledger.records
    assert (record.outcome, record.reason, record.steps_run) == (Outcome.CANCELLED, "CANCELLED", 4)
    assert (record.usage.billable, record.usage.cost_microusd) == (False, 0)


async def test_a_detached_job_goes_on_without_readers(stage: Stage) -> None:
    """It is finished, settled and kept, its room reserved from the beginning; its deadline was never the job's."""
    loop = asyncio.get_running_loop()
    stream = await stage.open(draft=drafted("k", is_detached=True), deadline=loop.time() + 1)
    assert stage.backend.submitted[0][1] is None
    assert stage.shelf.bytes == RAW_CHANNELS * 64 * 64 + FILE_BYTES
    stage.desk.leave(stream)
    assert stage.backend.cancelled == []
    stage.start()
    stage.draw()
    await stage.idle()
    assert (stage.shelf.bytes, len(stage.shelf)) == (len(IMAGE.data), 1)
    again = await stage.open("b", draft=drafted("k"))
    assert [type(event) for event in await told(again)] == [Accepted, Started, EncodedImage, Completed]
    assert len(stage.backend.submitted) == 1


async def test_at_its_deadline_a_job_ends(stage: Stage) -> None:
    """Its reader is told DEADLINE_PASSED at once, the backend to stop; the record's outcome is DEADLINE."""
    stream = await stage.open(deadline=asyncio.get_running_loop().time())
    with pytest.raises(DeadlinePassed):
        await told(stream)
    assert stage.backend.cancelled == ["a"]
    stage.desk.leave(stream)
    stage.backend.stop("a")
    await stage.idle()
    assert [record.outcome for record in stage.ledger.records] == [Outcome.DEADLINE]


async def test_a_patient_reader_lifts_the_deadline_and_its_leaving_brings_it_back(stage: Stage) -> None:
    """The backend is told each time; an earlier deadline that has passed meanwhile then counts at once."""
    now = asyncio.get_running_loop().time()
    first = await stage.open(draft=drafted("k", priority=Priority.BATCH), deadline=now + 60)
    second = await stage.open("b", draft=drafted("k", priority=Priority.INTERACTIVE))
    assert stage.backend.changed[-1] == ("a", None, Priority.INTERACTIVE)
    stage.desk.leave(second)
    request_id, left, priority = stage.backend.changed[-1]
    assert (request_id, priority) == ("a", Priority.BATCH)
    assert left is not None
    assert left <= 60
    assert stage.desk.jobs._expiry[first.job].when() == now + 60


async def test_a_job_holds_no_pixels(stage: Stage) -> None:
    """Those of its references are the backend's: a kept image would hold 16 MiB of them that nothing counts."""
    stream = await stage.open(draft=drafted("k", references=2))
    assert [len(reference.pixels.data) for reference in stage.backend.submitted[0][0].references] == [3 * 96 * 64] * 2
    stage.start()
    stage.draw()
    await stage.idle()
    stage.desk.leave(stream)
    assert len(stage.shelf) == 1
    assert [reference.pixels.data for reference in stream.job.request.references] == [b"", b""]
    assert stream.job.request.reference_sizes == (Size(96, 64), Size(96, 64))


@pytest.mark.parametrize(
    ("failure", "raised"), [(LedgerUnavailable(), LedgerUnavailable), (OSError("a defect"), Internal)]
)
async def test_what_cannot_be_written_down_is_not_delivered(
    stage: Stage, failure: BaseException, raised: type[KleinError]
) -> None:
    """The reader is told so and gets no image; the key is free, nothing is counted as billable."""
    stream = await stage.open(draft=drafted("k"))
    stage.start()
    stage.ledger.failure = failure
    stage.draw()
    with pytest.raises(raised):
        await told(stream)
    stage.desk.leave(stream)
    stage.ledger.failure = None
    await stage.until(lambda: not stage.desk.jobs.shown())
    assert await stage.keys.find("anonymous", "k") is None
    assert stage.counted("klein_cost_microusd_total", caller="anonymous", operation="generate") == 0


async def test_a_failure_of_the_backend_is_the_reader_s_answer(stage: Stage) -> None:
    """Its record says FAILED with the reason; the caller's slot and megapixels come back; the key is free."""
    caller = replace(LIMITED, megapixels_per_minute=1)
    stream = await stage.open(draft=drafted("k"), caller=caller)
    stage.start()
    stage.backend.tell("a", Failed(AcceleratorOutOfMemory("no room", retry_seconds=1.0), SPENT))
    with pytest.raises(AcceleratorOutOfMemory):
        await told(stream)
    stage.desk.leave(stream)
    await stage.idle()
    [record] = stage.ledger.records
    assert (record.outcome, record.reason) == (Outcome.FAILED, "ACCELERATOR_OUT_OF_MEMORY")
    await stage.open("b", draft=drafted("k"), caller=caller)


async def test_megapixels_of_a_cancelled_step_are_not_given_back(stage: Stage) -> None:
    """Before its first step they are, after it they are not; the slot is, each time."""
    caller = replace(LIMITED, megapixels_per_minute=1)
    stage.desk.leave(await stage.open("a", caller=caller))
    stream = await stage.open("b", caller=caller)
    stage.start("b")
    stage.desk.leave(stream)
    with pytest.raises(QuotaExceeded) as refused:
        await stage.open("c", caller=caller)
    assert refused.value.limit == "megapixels_per_minute"


async def test_megapixels_of_what_an_operator_ended_come_back(stage: Stage) -> None:
    """Also after its first step: it was not the caller's doing."""
    caller = replace(LIMITED, megapixels_per_minute=1)
    stream = await stage.open("a", caller=caller)
    stage.start("a")
    assert stage.desk.jobs.cancel_request("a")
    stage.desk.leave(stream)
    await stage.open("b", caller=caller)


async def test_draining_waits_for_what_was_admitted(stage: Stage) -> None:
    """It returns when the last job has ended, and ends none itself."""
    stream = await stage.open()
    draining = asyncio.ensure_future(stage.desk.jobs.drain(60))
    await asyncio.sleep(0)
    stage.start()
    stage.draw()
    await draining
    assert EncodedImage in [type(event) for event in await told(stream)]


async def test_after_the_grace_the_rest_is_told(stage: Stage) -> None:
    """Waiting and running jobs end with DRAINING, which is ours: the record says FAILED."""
    streams = [await stage.open(name) for name in "ab"]
    stage.start("a")
    await stage.desk.jobs.drain(0)
    for name, stream in zip("ab", streams, strict=True):
        with pytest.raises(Draining):
            await told(stream)
        stage.backend.stop(name)
    await stage.idle()
    assert [record.reason for record in stage.ledger.records] == ["DRAINING", "DRAINING"]


async def test_an_operator_sees_jobs_and_can_end_them(stage: Stage) -> None:
    """What is shown has no prompt; an id that is not there is said to be none."""
    stream = await stage.open(draft=drafted(client_tag="x"))
    [shown] = stage.desk.jobs.shown()
    assert (shown["request_id"], shown["stage"], shown["size"], shown["readers"]) == ("a", "queue", "64x64", 1)
    assert "a star" not in str(shown)
    assert not stage.desk.jobs.cancel_request("b")
    assert stage.desk.jobs.cancel_request("a")
    with pytest.raises(Cancelled, match="operator"):
        await told(stream)
