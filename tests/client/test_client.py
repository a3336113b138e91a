"""The calls that make no image, and what every call carries ({capabilities,usage}.py)."""

from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from klein.v1 import image_pb2 as pb
from klein.v1 import usage_pb2
from kleinclient import Client, KleinError, NotImplementedByServer, RequestTooLarge, ServerUnreachable, Size, UsageTotal

from tests.client.conftest import PICTURE, QUICK, ending, opening, refuse

START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


def once(message: Any) -> Any:
    return lambda request, context: iter([message])


def not_yet(request: Any, context: grpc.ServicerContext) -> Any:
    refuse(context, grpc.StatusCode.UNAVAILABLE, "NOT_READY", retry_seconds=0.01)
    yield from ()


def no(request: Any, context: grpc.ServicerContext) -> Any:
    refuse(context, grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    yield from ()


def test_capabilities(server: Any, caller: Any) -> None:
    """Capabilities come as one value, asked again while the server warms up; formats of later are left out."""
    answer = pb.GetCapabilitiesResponse(
        model="mini", default_width=256, default_height=128, image_formats=[1, 4, 77], price=pb.Price(version="test")
    )
    server.play(not_yet, once(answer))
    capabilities = caller.ask(server.target, "capabilities")
    assert (capabilities.model, capabilities.default_size) == ("mini", Size(256, 128))
    assert (capabilities.image_formats, capabilities.price.version) == (("png", "raw_rgba"), "test")


def test_usage(server: Any, caller: Any) -> None:
    """Totals come as values, for the time that was asked."""
    total = usage_pb2.UsageTotal(caller="me", operation=2, requests=3, images=2, cost_microusd=28_000)
    server.play(once(usage_pb2.GetUsageResponse(totals=[total])))
    assert caller.ask(server.target, "usage", START, END) == (UsageTotal("me", "edit", 3, 2, 0, 0, 28_000),)
    assert server.requests[0].start_time.ToDatetime(UTC) == START
    assert server.requests[0].end_time.ToDatetime(UTC) == END


def test_usage_records(server: Any, caller: Any) -> None:
    """Records come one by one, with times in UTC and words for the enums."""
    ended = Timestamp(seconds=1_795_000_000)
    record = usage_pb2.UsageRecord(record_id="7", operation=1, outcome=2, end_time=ended)
    server.play(once(usage_pb2.ListUsageRecordsResponse(record=record)))
    [said] = caller.ask(server.target, "usage_records", START, END)
    assert (said.record_id, said.operation, said.outcome) == ("7", "generate", "cancelled")
    assert said.end_time == datetime.fromtimestamp(1_795_000_000, UTC)


def test_time_without_zone(server: Any) -> None:
    """A time whose zone would be a guess is refused before anything is sent."""
    with Client(server.target) as klein, pytest.raises(ValueError, match=r"start: .* has no time zone"):
        klein.usage(datetime(2026, 11, 1), END)


@pytest.mark.parametrize(
    ("rpc", "arguments"), [("cancel", ["key-1"]), ("usage", [START, END]), ("usage_records", [START, END])]
)
def test_not_implemented(server: Any, caller: Any, rpc: str, arguments: list[Any]) -> None:
    """What a server does not offer is an error of its own."""
    server.play(no)
    with pytest.raises(NotImplementedByServer):
        caller.ask(server.target, rpc, *arguments)


def test_cancel(server: Any, caller: Any) -> None:
    """Cancel names the request by its key."""
    server.play(once(pb.CancelResponse()))
    caller.ask(server.target, "cancel", "key-1")
    assert server.requests[0].idempotency_key == "key-1"


def test_edit_with_an_image_made_before(server: Any, tmp_path: Any) -> None:
    """An image can be edited as it is, beside bytes and files."""
    server.play(lambda request, context: iter([*opening(), *ending()]))
    with Client(server.target) as klein:
        image = klein.generate("a red circle").result()
        klein.edit("make it green", [image, b"bytes", image.save(tmp_path / "file.png")]).result()
    assert [reference.image for reference in server.requests[1].references] == [PICTURE, b"bytes", PICTURE]


def test_metadata(server: Any) -> None:
    """Metadata goes with every call, images and answers alike; the client says who it is."""
    server.play(lambda request, context: iter([*opening(), *ending()]))
    with Client(server.target, metadata=[("authorization", "Bearer x")], retry=QUICK) as klein:
        klein.generate("a red circle").result()
        server.play(no)
        with pytest.raises(KleinError):
            klein.capabilities()
    assert [metadata["authorization"] for metadata in server.metadata] == ["Bearer x", "Bearer x"]
    assert server.metadata[0]["user-agent"].startswith("kleinclient/")


def test_request_of_44_mib_is_sent(server: Any) -> None:
    """The largest request that servers take by default is not refused here; a larger one is, readably."""
    server.play(no)
    with Client(server.target) as klein:
        with pytest.raises(RequestTooLarge, match=r"larger than a server takes \(\d+ vs\. 46137344\) bytes"):
            klein.edit("x", [bytes(44 * 2**20)]).result()
        assert not server.requests


def test_unresolvable_name(caller: Any) -> None:
    """A host that does not exist is a wrong address like any other."""
    with pytest.raises(ServerUnreachable, match=r"no klein server answers at no-such-host\.invalid:1"):
        caller.ask("no-such-host.invalid:1", "capabilities")
