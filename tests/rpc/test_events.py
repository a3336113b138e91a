"""Every event as its message, numbered; the image in chunks."""

from dataclasses import replace

import pytest
from google.protobuf.message import Message
from klein.v1 import image_pb2
from kleinserve.core import (
    AlphaMethod,
    Completed,
    Event,
    ImageFormat,
    Preview,
    PreviewFormat,
    Progress,
    Queued,
    Size,
    Started,
    Timings,
)
from kleinserve.rpc.events import Numbered

from tests.desk.requests import ACCEPTED, IMAGE, USAGE

SAID = replace(
    ACCEPTED,
    seed=2**64 - 1,
    size=Size(96, 64),
    guidance_scale=1.5,
    reference_sizes=(Size(64, 80),),
    prompt_truncated=True,
    estimated_wait=0.25,
    estimated_duration=90.5,
    estimated_usage=replace(USAGE, billable=False, reference_megapixels=1),
    is_replay=True,
)
PICTURE = Preview(2, 4, PreviewFormat.WEBP, 12, 8, 3, b"picture", skipped=5)
DONE = Completed(USAGE, Timings(0.5, 0.25, 0.125, 2.0, 1.5, 0.75), 3, 6)
EVENTS: list[tuple[str, Event]] = [
    ("accepted", SAID),
    ("queued", Queued(3, 1.5)),
    ("started", Started(0.25)),
    ("progress", Progress(2, 4, 0.125)),
    ("preview", PICTURE),
    ("completed", DONE),
]


def numbered() -> Numbered:
    return Numbered("request", "order 7")


def plain(message: Message) -> dict[str, object]:
    """A message as values: durations as seconds, enumerations by name."""
    values: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            value = [plain(each) for each in value]
        elif field.message_type is not None:
            is_duration = field.message_type.full_name == "google.protobuf.Duration"
            value = value.ToNanoseconds() / 1e9 if is_duration else plain(value)
        elif field.enum_type is not None:
            value = field.enum_type.values_by_number[value].name
        values[field.name] = value
    return values


def facts(happened: object) -> dict[str, object]:
    """An event of ours in the same form."""
    values: dict[str, object] = {}
    for name, value in vars(happened).items():
        if isinstance(value, Size):
            values |= {"width": value.width, "height": value.height}
        elif isinstance(value, tuple):
            values[name] = [facts(each) if not isinstance(each, Size) else vars(each) for each in value]
        elif isinstance(value, PreviewFormat):
            values[name] = f"PREVIEW_FORMAT_{value.name}"
        else:
            values[name] = facts(value) if hasattr(value, "__dataclass_fields__") else value
    return values


@pytest.mark.parametrize(("kind", "happened"), EVENTS, ids=[kind for kind, _ in EVENTS])
def test_a_message_says_all_that_its_event_does(kind: str, happened: Event) -> None:
    """Field by field, none left at its default; times as durations, exactly."""
    message = numbered().event(happened)
    assert message.WhichOneof("event") == kind
    assert (message.request_id, message.client_tag) == ("request", "order 7")
    assert plain(getattr(message, kind)) == facts(happened)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 8, 9])
def test_an_image_is_a_header_and_all_its_bytes(length: int) -> None:
    """Chunks of at most 4 bytes, each at its offset, one after the other."""
    image = replace(IMAGE, data=bytes(range(length)), sha256=b"h" * 32, size=Size(96, 64))
    header, *chunks = numbered().image(image, 4)
    assert plain(header.image_header) == {
        "format": "IMAGE_FORMAT_PNG",
        "mime_type": "image/png",
        "width": 96,
        "height": 64,
        "alpha_method": "ALPHA_METHOD_OPAQUE",
        "size_bytes": length,
        "sha256": b"h" * 32,
    }
    assert [chunk.image_chunk.offset for chunk in chunks] == list(range(0, length, 4))
    assert b"".join(chunk.image_chunk.data for chunk in chunks) == image.data
    assert all(1 <= len(chunk.image_chunk.data) <= 4 for chunk in chunks)


def test_one_stream_is_numbered_without_gaps() -> None:
    """Events, header and chunks count on; another stream begins at 0."""
    stream = numbered()
    messages = [stream.event(SAID), *stream.image(replace(IMAGE, data=bytes(10)), 4), stream.event(DONE)]
    assert [message.sequence for message in messages] == [0, 1, 2, 3, 4, 5]
    assert numbered().event(SAID).sequence == 0


@pytest.mark.parametrize("format", ImageFormat)
@pytest.mark.parametrize("alpha_method", AlphaMethod)
def test_every_format_and_method_has_its_number(format: ImageFormat, alpha_method: AlphaMethod) -> None:
    """What the server can make it can name."""
    header, *_ = numbered().image(replace(IMAGE, format=format, alpha_method=alpha_method), 4)
    assert image_pb2.ImageFormat.Name(header.image_header.format) == f"IMAGE_FORMAT_{format.name}"
    assert image_pb2.AlphaMethod.Name(header.image_header.alpha_method) == f"ALPHA_METHOD_{alpha_method.name}"
