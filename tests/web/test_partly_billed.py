"""Several images in one answer of OpenAI's API, of which one fails: calls whose methods the tests say."""

import asyncio

import pytest
from klein.v1 import image_pb2
from kleinserve.errors import Internal, KleinError, LedgerUnavailable, QueueFull
from kleinserve.rpc.call import Call

from tests.web.answers import opened
from tests.web.ports import ports

PATH = "/v1/images/generations"


class Two:
    """The first image is whole at once; then the second fails, after it was admitted."""

    def __init__(self, error: KleinError, *, is_first_whole: bool = True):
        self.error, self.is_first_whole = error, is_first_whole
        self.first, self.keys, self.cancelled = asyncio.Event(), list[str](), False

    async def __call__(self, message: image_pb2.GenerateRequest, call: Call) -> None:
        self.keys.append(message.options.idempotency_key)
        await call.begin()
        await call.write(image_pb2.ImageEvent(accepted=image_pb2.Accepted(seed=message.options.seed)))
        if message.options.seed == 1:
            await self.first.wait()
            raise self.error
        if not self.is_first_whole:
            self.first.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
        await call.write(image_pb2.ImageEvent(image_header=image_pb2.ImageHeader(size_bytes=1)))
        await call.write(image_pb2.ImageEvent(image_chunk=image_pb2.ImageChunk(data=b"x")))
        await call.write(image_pb2.ImageEvent(completed=image_pb2.Completed()))
        self.first.set()


@pytest.mark.parametrize(
    ("error", "key", "should_retry"),
    [
        (QueueFull("full", retry_seconds=2.5), "", "false"),
        (QueueFull("full", retry_seconds=2.5), "mine", "true"),
        (LedgerUnavailable(), "", "false"),
        (LedgerUnavailable(), "mine", "true"),
        (Internal("internal error"), "mine", "false"),
    ],
)
async def test_what_was_billed_is_said(error: KleinError, key: str, should_retry: str) -> None:
    """None is returned; the error says how many were billed and by which key they come again, and only then retries."""
    two = Two(error)
    async with ports(two) as port, opened(port.web) as client:
        headers = {"idempotency-key": key} if key else {}
        answer = await client.post(PATH, json={"prompt": "a circle", "n": 2, "seed": 0}, headers=headers)
    told = answer.json()["error"]
    assert told["code"] == error.reason
    assert two.keys[0].removesuffix("/1") == two.keys[1].removesuffix("/2")
    again = f"; 1 of 2 images were billed before that: the same request with Idempotency-Key {two.keys[0][:-2]} "
    assert again in told["message"]
    assert not key or two.keys[0] == "mine/1"
    assert answer.headers["x-should-retry"] == should_retry


async def test_what_is_not_billed_is_cancelled() -> None:
    """Where one fails the others end at once, and nothing is said of bills."""
    two = Two(QueueFull("full", retry_seconds=2.5), is_first_whole=False)
    async with ports(two) as port, opened(port.web) as client:
        answer = await client.post(PATH, json={"prompt": "a circle", "n": 2, "seed": 0})
    assert two.cancelled
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == "full"
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "3")


async def test_a_record_that_may_come_later_is_not_tried_again() -> None:
    """LEDGER_UNAVAILABLE after the admission may be billed yet: without a key the package must not ask again."""

    async def unsettled(message: image_pb2.GenerateRequest, call: Call) -> None:
        await call.begin()
        await call.write(image_pb2.ImageEvent(accepted=image_pb2.Accepted()))
        raise LedgerUnavailable()

    async with ports(unsettled) as port, opened(port.web) as client:
        bare = await client.post(PATH, json={"prompt": "a circle"})
        keyed = await client.post(PATH, json={"prompt": "a circle"}, headers={"idempotency-key": "mine"})
    assert (bare.status_code, bare.headers["x-should-retry"]) == (503, "false")
    assert (keyed.status_code, keyed.headers["x-should-retry"]) == (503, "true")
