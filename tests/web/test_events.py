"""gRPC and gRPC-Web beside each other on a real server: the same events, the same refusals."""

from collections import defaultdict

import pytest
from google.protobuf.message import Message
from klein.v1 import image_pb2, usage_pb2

from tests.e2e.calls import edit, generate, png
from tests.web.answers import BINARY, TEXT, Answer, asked, opened, over_grpc, over_web
from tests.web.conftest import TOKEN, Web
from tests.web.test_grpcweb import comparable

IMAGES, USAGE = "/klein.v1.ImageService/", "/klein.v1.UsageService/"
TIMES = ("estimated_wait", "estimated_duration", "estimated_remaining", "queue_wait", "timings")
ATTEMPTS = 10


def events(answer: Answer) -> dict[str, list[str]]:
    """The events of each kind as text, but for ids and times; what only keeps a stream alive is left out.

    By kind, since a preview comes when it is drawn, before or after the next step's progress.
    """
    told: dict[str, list[str]] = defaultdict(list)
    for message in answer.messages:
        event = image_pb2.ImageEvent.FromString(message)
        event.ClearField("request_id")
        event.ClearField("sequence")
        kind = event.WhichOneof("event")
        within = getattr(event, kind)
        for name in TIMES:
            if name in within.DESCRIPTOR.fields_by_name:
                within.ClearField(name)
        if kind != "queued" and not (kind == "progress" and within.step == 0):
            told[kind].append(str(event))
    return told


def is_whole(answer: Answer) -> bool:
    """Whether its reader heard of every step, and missed no preview."""
    parsed = [image_pb2.ImageEvent.FromString(message) for message in answer.messages]
    steps = {event.progress.step for event in parsed if event.progress.step}
    return len(steps) == parsed[0].accepted.steps and parsed[-1].completed.previews_skipped == 0


@pytest.mark.parametrize("kind", [BINARY, TEXT])
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Generate", generate(seed=3, client_tag="tag")),
        ("Generate", generate(seed=4, output=image_pb2.OutputOptions(background="BACKGROUND_TRANSPARENT"))),
        ("Generate", generate(seed=5, preview=image_pb2.PreviewOptions(format="PREVIEW_FORMAT_LATENT"))),
        ("Edit", edit([png(96, 64), png(64, 96, "blue")], seed=6, steps=2)),
    ],
)
async def test_every_event_equals_grpcs(web: Web, method: str, message: Message, kind: str) -> None:
    """The same request has the same events on both ports, byte for byte but for times and ids.

    A reader that is slow for a moment is told the newest step alone: asked again until both have heard of every one.
    """
    for _ in range(ATTEMPTS):
        there = await over_grpc(web.target, IMAGES + method, message)
        here = await over_web(web.base, IMAGES + method, message, kind)
        assert (here.code, there.code) == ("OK", "OK")
        parsed = [image_pb2.ImageEvent.FromString(each) for each in here.messages]
        assert [event.sequence for event in parsed] == list(range(len(parsed)))
        if is_whole(here) and is_whole(there):
            break
    assert events(here) == events(there)
    kinds = {"accepted", "started", "preview", "progress", "image_header", "image_chunk", "completed"}
    assert events(here).keys() == kinds


REFUSED = [
    ("Generate", generate(size=(100, 64)), "INVALID_FIELD"),
    ("Edit", edit([]), "INVALID_FIELD"),
    ("Edit", edit([b"no image"]), "REFERENCE_UNREADABLE"),
    ("Edit", edit([png(1024, 64)]), "REFERENCE_UNSUPPORTED"),
    ("Edit", edit([b"\x89PNG\r\n\x1a\n" + b"\0" * (10 * 1024 * 1024)]), "REFERENCE_TOO_LARGE"),
    ("Attach", image_pb2.AttachRequest(idempotency_key="nobody's"), "UNKNOWN_KEY"),
    ("Cancel", image_pb2.CancelRequest(idempotency_key="nobody's"), "UNKNOWN_KEY"),
    ("Cancel", image_pb2.CancelRequest(), "INVALID_FIELD"),
]


@pytest.mark.parametrize(("method", "message", "reason"), REFUSED)
async def test_refusals_equal_grpcs(web: Web, method: str, message: Message, reason: str) -> None:
    """What a real server refuses it refuses with the same code, message and details on both ports."""
    there = await over_grpc(web.target, IMAGES + method, message)
    here = await over_web(web.base, IMAGES + method, message)
    assert here.reason == reason
    assert comparable(here) == comparable(there)


async def test_a_reused_key_is_refused_alike(web: Web) -> None:
    """IDEMPOTENCY_KEY_REUSED on both ports, whichever port took the key first; the same request is replayed."""
    asked_for = generate(seed=1, idempotency_key="across")
    first = await over_web(web.base, IMAGES + "Generate", asked_for)
    again = await over_grpc(web.target, IMAGES + "Generate", asked_for)
    assert image_pb2.ImageEvent.FromString(again.messages[0]).accepted.is_replay
    assert first.code == again.code == "OK"
    other = generate(seed=2, idempotency_key="across")
    there = await over_grpc(web.target, IMAGES + "Generate", other)
    here = await over_web(web.base, IMAGES + "Generate", other)
    assert here.reason == "IDEMPOTENCY_KEY_REUSED"
    assert comparable(here) == comparable(there)


async def test_unary_and_usage_equal_grpcs(web: Web) -> None:
    """Capabilities and usage are the same on both ports, and a bad period too."""
    period = usage_pb2.GetUsageRequest()
    period.start_time.FromSeconds(1)
    period.end_time.FromSeconds(2)
    listed = usage_pb2.ListUsageRecordsRequest()
    listed.start_time.FromSeconds(1)
    listed.end_time.FromSeconds(4_000_000_000)
    for path, message, code in (
        (IMAGES + "GetCapabilities", image_pb2.GetCapabilitiesRequest(), "OK"),
        (USAGE + "GetUsage", period, "OK"),
        (USAGE + "GetUsage", usage_pb2.GetUsageRequest(), "INVALID_ARGUMENT"),
        (USAGE + "ListUsageRecords", listed, "OK"),
    ):
        there, here = await over_grpc(web.target, path, message), await over_web(web.base, path, message)
        assert here.code == code
        assert comparable(here) == comparable(there)


async def test_callers_and_quotas_are_the_same(limited: Web) -> None:
    """A token is checked, and a quota kept, as over gRPC."""
    message, large = generate(), generate(size=(2048, 1536))
    known = {"authorization": f"Bearer {TOKEN}"}
    for given, asked_for, reason in (
        ({}, message, "UNAUTHENTICATED"),
        ({"authorization": "Bearer other"}, message, "UNAUTHENTICATED"),
        (known, large, "QUOTA_EXCEEDED"),
    ):
        there = await over_grpc(limited.target, IMAGES + "Generate", asked_for, **given)
        here = await over_web(limited.base, IMAGES + "Generate", asked_for, **given)
        assert here.reason == reason
        assert comparable(here) == comparable(there)
    other = usage_pb2.GetUsageRequest(caller="somebody")
    other.start_time.FromSeconds(1)
    other.end_time.FromSeconds(2)
    there = await over_grpc(limited.target, USAGE + "GetUsage", other, **known)
    here = await over_web(limited.base, USAGE + "GetUsage", other, **known)
    assert here.reason == "PERMISSION_DENIED"
    assert comparable(here) == comparable(there)


async def test_an_edit_of_42_mib_is_accepted(web: Web) -> None:
    """Four references of 10 MiB pass the web port, as they pass gRPC's: only their content is refused."""
    data = png() + b"\0" * (10 * 1024 * 1024 - 2000)
    here = await over_web(web.base, IMAGES + "Edit", edit([data] * 4, steps=1))
    assert here.code == "OK" or here.reason.startswith("REFERENCE_"), here.message
    larger = edit([data, data, data, data, data])
    there, here = (
        await over_grpc(web.target, IMAGES + "Edit", larger),
        await over_web(web.base, IMAGES + "Edit", larger),
    )
    assert here.code == there.code == "RESOURCE_EXHAUSTED"
    assert here.status is None
    assert there.status is None


async def test_both_ports_count_alike(web: Web) -> None:
    """A request over the web port is one request of the same metrics, and a cancel there one cancel."""
    before = web.counted("klein_requests_total"), web.counted("klein_cancelled_total")
    await over_web(web.base, IMAGES + "Generate", generate(seed=9))
    async with opened(web.base) as client:
        long = generate(size=(512, 512), steps=50)
        async with asked(client, IMAGES + "Generate", long) as (_, messages):
            while image_pb2.ImageEvent.FromString(await anext(messages)).WhichOneof("event") != "preview":
                pass
    await web.counts("klein_cancelled_total", before[1] + 1)
    await web.counts("klein_requests_total", before[0] + 2)


async def test_a_cancel_is_told_to_the_stream(web: Web) -> None:
    """A job that is ended by its key over gRPC ends its gRPC-Web stream with CANCELLED."""
    long = generate(size=(512, 512), steps=50, idempotency_key="ended")

    async with opened(web.base) as client, asked(client, IMAGES + "Generate", long) as (answer, messages):
        await anext(messages)
        cancelled = await over_grpc(web.target, IMAGES + "Cancel", image_pb2.CancelRequest(idempotency_key="ended"))
        async for message in messages:
            answer.messages.append(message)
    assert cancelled.code == "OK"
    assert (answer.code, answer.reason) == ("CANCELLED", "CANCELLED")
