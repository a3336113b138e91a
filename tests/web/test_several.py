"""Several images in one answer of OpenAI's API, by a real desk: all are billed before its first byte, or none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from kleinserve.config import Config
from kleinserve.core import Failed
from kleinserve.errors import Internal, KleinError, LedgerUnavailable, QueueFull
from kleinserve.identity.authenticator import Everyone
from kleinserve.rpc.forward import Forward
from kleinserve.rpc.servicer import Images

from tests.desk.requests import SPENT
from tests.desk.stage import Stage
from tests.scheduler.scripted import FACTS
from tests.web.answers import opened
from tests.web.ports import ports

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
THREE = {"prompt": "a circle", "n": 3, "seed": 7, "size": "64x64"}


class House:
    """A stage whose desk is behind the web port, and a client."""

    def __init__(self, stage: Stage, client: httpx.AsyncClient):
        self.stage, self.client = stage, client

    def ask(self, fields: dict[str, Any] = THREE, **headers: str) -> "asyncio.Task[httpx.Response]":
        return asyncio.create_task(self.client.post(GENERATIONS, json=fields, headers=headers))

    async def running(self, count: int = 3) -> list[str]:
        """The requests' ids, once so many have been admitted, all started."""
        await self.stage.until(lambda: len(self.stage.desk.jobs.shown()) == count)
        ids = [request.request_id for request, _ in self.stage.backend.submitted][-count:]
        for request_id in ids:
            self.stage.start(request_id)
        return ids

    @property
    def paid(self) -> float:
        return self.stage.counted("klein_cost_microusd_total", caller="anonymous", operation="generate")


@asynccontextmanager
async def housed(**settings: Any) -> AsyncIterator[House]:
    stage = Stage(**settings)
    images = Images(stage.desk, Forward(Everyone(), lambda: None, 1.0), FACTS, Config())
    async with ports(images.generate, stage=stage) as port, opened(port.web) as client:
        yield House(stage, client)


async def test_all_are_billed_at_once() -> None:
    """Nothing of the answer comes before the last image is drawn; then three records are one commit."""
    async with housed() as house:
        asked = house.ask()
        ids = await house.running()
        for request_id in ids[:2]:
            house.stage.draw(request_id)
        assert await asyncio.wait((asked,), timeout=0.1) == (set(), {asked})
        assert house.paid == 0
        house.stage.draw(ids[2])
        answer = await asked
        assert (answer.status_code, house.stage.ledger.together, house.paid) == (200, [3], 42_000)
        assert [image["seed"] for image in answer.json()["data"]] == [7, 8, 9]
        assert answer.json()["usage"]["cost_microusd"] == 42_000


@pytest.mark.parametrize("key", ["", "mine"])
@pytest.mark.parametrize(
    ("error", "should_retry"), [(QueueFull("full", retry_seconds=2.5), "true"), (Internal("internal error"), "false")]
)
async def test_where_one_fails_none_is_billed(error: KleinError, should_retry: str, key: str) -> None:
    """Its error is the answer; the others end, drawn or not, and with a key all can be asked for again."""
    async with housed() as house:
        asked = house.ask(**({"idempotency-key": key} if key else {}))
        ids = await house.running()
        house.stage.draw(ids[0])
        house.stage.backend.tell(ids[1], Failed(error, SPENT))
        answer = await asked
        assert house.stage.backend.cancelled == [ids[2]]
        house.stage.backend.stop(ids[2])
        await house.stage.idle()
        assert answer.json()["error"]["code"] == error.reason
        assert "billed" not in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == should_retry
        assert (house.paid, {record.usage.billable for record in house.stage.ledger.records}) == (0, {False})
        again = house.ask(**({"idempotency-key": key} if key else {}))
        for request_id in await house.running():
            house.stage.draw(request_id)
        assert ((await again).status_code, house.paid) == (200, 42_000)


async def test_where_one_is_refused_none_is_billed() -> None:
    """The queue has room for two of three: the whole is refused, and its two leave."""
    async with housed(queue_requests_max=2) as house:
        answer = await house.ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "QUEUE_FULL")
        assert answer.headers["x-should-retry"] == "true"
        assert sorted(house.stage.backend.cancelled) == sorted(house.stage.backend.sinks)
        assert (len(house.stage.backend.sinks), house.paid, house.stage.waiting) == (2, 0, 0)


async def test_who_leaves_ends_all() -> None:
    """A client that goes while one is drawn and two run is not billed."""
    async with housed() as house:
        asked = house.ask()
        ids = await house.running()
        house.stage.draw(ids[0])
        asked.cancel()
        await house.stage.until(lambda: len(house.stage.backend.cancelled) == 2)
        assert (set(house.stage.backend.cancelled), house.paid) == (set(ids[1:]), 0)


@pytest.mark.parametrize(("key", "should_retry"), [("", "false"), ("mine", "true")])
async def test_a_record_that_may_come_later_is_not_tried_again(key: str, should_retry: str) -> None:
    """LEDGER_UNAVAILABLE of the commit may be billed yet: without a key the package must not ask again."""
    async with housed() as house:
        house.stage.ledger.failure = LedgerUnavailable()
        asked = house.ask(**({"idempotency-key": key} if key else {}))
        for request_id in await house.running():
            house.stage.draw(request_id)
        answer = await asked
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, should_retry)


async def test_what_was_billed_before_is_said() -> None:
    """Of an image that its key brings again, where another fails: the same request does not cost it again."""
    async with housed() as house:
        first = house.ask({**THREE, "n": 2}, **{"idempotency-key": "mine"})
        for request_id in await house.running(2):
            house.stage.draw(request_id)
        assert (await first).status_code == 200
        second = house.ask(**{"idempotency-key": "mine"})
        [added] = await house.running(1)
        house.stage.backend.tell(added, Failed(QueueFull("full", retry_seconds=2.5), SPENT))
        answer = await second
        told = answer.json()["error"]["message"]
        assert "; 2 of 3 images were billed before that: the same request with Idempotency-Key mine brings them" in told
        assert (answer.headers["x-should-retry"], house.paid) == ("true", 28_000)


async def test_references_are_decoded_once() -> None:
    """Two references for three images are decoded once, and what the queue counts is one message and its pixels."""
    async with housed() as house:
        parts = [("image[]", ("a.png", b"file", "image/png"))] * 2
        fields = {"prompt": "a circle", "n": "3", "size": "64x64"}
        asked = asyncio.create_task(house.client.post(EDITS, data=fields, files=parts))
        await house.stage.until(lambda: len(house.stage.desk.jobs.shown()) == 3)
        request = house.client.build_request("POST", EDITS, data=fields, files=parts)
        counted = house.stage.desk._reception._places.bytes
        assert abs(counted - len(request.read()) - 2 * 96 * 64 * 3) <= 3 + 64  # the shares are rounded, boundaries vary
        assert house.stage.intake.decoded == 2
        for request_id in await house.running():
            house.stage.draw(request_id)
        assert (await asked).status_code == 200
