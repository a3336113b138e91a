"""/debug/requests of a real server, with and without callers: who may look, and who may cancel."""

import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from klein.v1 import image_pb2, image_pb2_grpc
from kleinserve.identity.callers import token_digest

from tests.e2e.calls import generate, opened, refused, until
from tests.e2e.conftest import ENDLESS, Serving, served

CALLERS = f"""
[callers.operator]
token_sha256 = ["{token_digest("admins")}"]
admin = true

[callers.web]
token_sha256 = ["{token_digest("webs")}"]
"""


def ask(server: Serving, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and body; a header's name has _ for -."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{server.metrics}{path}", method=method, headers=names)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def listed(server: Serving, **headers: str) -> list[dict[str, Any]]:
    status, body = ask(server, "/debug/requests", **headers)
    assert status == 200
    return json.loads(body)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that knows two callers, one of them an admin, and steps one request at a time."""
    callers: Path = tmp_path_factory.mktemp("callers") / "callers.toml"
    callers.write_text(CALLERS)
    settings = {"KLEINSERVE_STEP_TOKENS_MAX": "1", "KLEINSERVE_MAX_STEPS": str(ENDLESS)}
    with served("--callers", str(callers), **settings) as server:
        yield server


@pytest.fixture
async def calls(guarded: Serving) -> AsyncIterator[list[Any]]:
    """Two requests of the caller `web`, one that runs and one that waits."""
    async with opened(guarded.target) as channel:
        stub, token = image_pb2_grpc.ImageServiceStub(channel), (("authorization", "Bearer webs"),)
        started = []
        for seed, kind in enumerate(("progress", "queued")):
            started.append(stub.Generate(generate(seed, steps=ENDLESS), metadata=token))
            await until(started[-1], kind)
        yield started
        for call in started:
            call.cancel()


async def test_shown(guarded: Serving, calls: list[Any]) -> None:
    """What waits and runs is listed with id, caller, size, step, age and predicted seconds, without its prompt."""
    found = listed(guarded)
    assert [(each["stage"], each["caller"], each["size"], each["steps"]) for each in found] == [
        ("step", "web", "64x64", ENDLESS),
        ("queue", "web", "64x64", ENDLESS),
    ]
    running, waiting = found
    assert {"request_id", "operation", "priority", "readers", "age_seconds"} <= set(running)
    assert running["step"] > 0
    assert running["age_seconds"] >= waiting["age_seconds"] >= 0
    assert min(running["predicted_seconds"], waiting["predicted_seconds"]) > 0
    assert "circle" not in json.dumps(found)


async def test_who_may(guarded: Serving, calls: list[Any]) -> None:
    """A program on this machine may look; to cancel takes an admin's token, and a page in a browser may do neither."""
    path = f"/debug/requests/{listed(guarded)[0]['request_id']}/cancel"
    assert ask(guarded, "/debug/requests", origin="http://localhost")[0] == 401
    assert ask(guarded, "/debug/requests", host="rebound.example")[0] == 401
    assert ask(guarded, "/debug/requests", origin="http://localhost", authorization="Bearer admins")[0] == 200
    assert ask(guarded, "/debug/requests", origin="http://localhost", authorization="Bearer webs")[0] == 403
    assert ask(guarded, path, "POST")[0] == 401
    assert ask(guarded, path, "POST", authorization="Bearer guessed")[0] == 401
    assert ask(guarded, path, "POST", authorization="Bearer webs")[0] == 403
    assert [each["stage"] for each in listed(guarded)] == ["step", "queue"]


async def test_cancel(guarded: Serving, calls: list[Any]) -> None:
    """An admin ends what runs and what waits; their callers get CANCELLED, and nothing is left."""
    token = {"authorization": "Bearer admins"}
    for call, shown in zip(calls, listed(guarded), strict=True):
        path = f"/debug/requests/{shown['request_id']}/cancel"
        assert ask(guarded, path, "POST", **token) == (200, "cancelled\n")
        code, reason, _ = await refused(call)
        assert (code, reason) == (grpc.StatusCode.CANCELLED, "CANCELLED")
    await guarded.counts("klein_running_requests", 0)
    await guarded.counts("klein_queue_depth", 0)
    assert ask(guarded, path, "POST", **token)[0] == 404


async def test_without_callers(single: Serving) -> None:
    """Without callers a program on this machine may look and cancel."""
    async with opened(single.target) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(steps=ENDLESS))
        request_id = (await until(call, "progress")).request_id
        assert request_id in [each["request_id"] for each in listed(single)]
        assert ask(single, f"/debug/requests/{request_id}/cancel", "POST") == (200, "cancelled\n")
        assert (await refused(call))[1] == "CANCELLED"
        assert ask(single, "/debug/requests/unknown/cancel", "POST")[0] == 404
        assert ask(single, f"/debug/requests/{request_id}/cancel")[0] == 405


async def test_billed(billing: Serving) -> None:
    """A request whose image is billed and on its way runs no more: it is not listed, and cannot be cancelled."""
    async with opened(
        billing.target, ("grpc.http2.lookahead_bytes", 16 * 1024), ("grpc.http2.bdp_probe", 0)
    ) as channel:
        output = image_pb2.OutputOptions(format="IMAGE_FORMAT_RAW_RGBA")
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(generate(size=(1024, 512), steps=1, output=output))
        header = await until(call, "image_header")
        assert listed(billing) == []
        assert ask(billing, f"/debug/requests/{header.request_id}/cancel", "POST")[0] == 404
        await until(call, "completed")
