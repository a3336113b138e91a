"""Reading a stream without a server: what is accepted, and what is refused as impossible."""

from collections.abc import Callable, Iterable

import pytest
from klein.v1 import image_pb2 as pb
from kleinclient import BrokenStream, Image
from kleinclient.reader import Reader

from tests.client.conftest import PICTURE, completed, ending, event, opening

Events = list[pb.ImageEvent]


def read(events: Iterable[pb.ImageEvent]) -> Image:
    reader = Reader()
    for message in events:
        reader.read(message)
    return reader.image()


def without(kind: str) -> Callable[[Events], Events]:
    return lambda events: [message for message in events if message.WhichOneof("event") != kind]


def shifted(events: Events) -> Events:
    for message in events:
        if message.WhichOneof("event") == "image_chunk" and message.image_chunk.offset:
            message.image_chunk.offset += 1
    return events


def altered(events: Events) -> Events:
    for message in events:
        if message.WhichOneof("event") == "image_chunk":
            message.image_chunk.data = bytes(len(message.image_chunk.data))
    return events


def lengthened(events: Events) -> Events:
    return [*events[:-1], event(image_chunk=pb.ImageChunk(offset=len(PICTURE), data=b"x")), events[-1]]


def shortened(events: Events) -> Events:
    return [*events[:-2], events[-1]]


BROKEN = [
    (lambda events: [], "ended without an image"),
    (without("accepted"), "ended without an image"),
    (without("completed"), "ended without an image"),
    (lambda events: [*list(opening()), completed()], "ended without an image"),
    (without("image_header"), "came before its header"),
    (shifted, "for offset 1001 where 1000 was due"),
    (lengthened, "more than its 2048 bytes"),
    (shortened, "2000 bytes of 2048"),
    (altered, "sha256 is not the one"),
    (lambda events: [*list(opening()), *ending(sha256=b"")], "sha256 is not the one"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN)
def test_impossible_streams(damage: Callable[[Events], Events], words: str) -> None:
    """A stream that contradicts itself, or ends without an image, is an error, whatever its status."""
    with pytest.raises(BrokenStream, match=words) as caught:
        read(damage([*opening(), *ending()]))
    assert (caught.value.status, caught.value.reason) == ("DATA_LOSS", "BROKEN_STREAM")


def test_second_stream_begins_anew() -> None:
    """After a restart the half-read image is forgotten, and what was said once is not said twice."""
    reader = Reader()
    half = [reader.read(message) for message in [*opening(), *list(ending())[:2]]]
    reader.restart()
    rest = [reader.read(message) for message in [*opening(), *ending()]]
    assert [type(said).__name__ for said in half if said].count("Accepted") == 1
    assert not {"Accepted", "Started"} & {type(said).__name__ for said in rest if said}
    assert reader.image().data == PICTURE
