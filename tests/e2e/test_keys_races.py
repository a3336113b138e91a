"""Keys where things happen at once: crowds, cancels at every moment, deadlines, failures, a drain with a restart."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from klein.v1 import image_pb2, image_pb2_grpc
from kleinclient import Accepted, AsyncClient, Retrying, Started

from tests.e2e.calls import NONE, generate, opened, refused, until
from tests.e2e.conftest import Serving, killed
from tests.e2e.faults import FAILS
from tests.e2e.test_keys import Told, told
from tests.usage.some import rows

CROWD = 20
MOMENTS = 8


@pytest.fixture(scope="module")
def racing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, str]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('racing')}/usage.db"
    with killed("--ledger", url, KLEINSERVE_INTAKE_WORKERS="1") as server:
        yield server, url


@pytest.fixture
async def stub(racing: tuple[Serving, str]) -> AsyncIterator[image_pb2_grpc.ImageServiceStub]:
    async with opened(racing[0].target) as channel:
        yield image_pb2_grpc.ImageServiceStub(channel)


def asked(key: str, steps: int = 1, **options: object) -> image_pb2.GenerateRequest:
    request = generate(0, (64, 64), steps, idempotency_key=key, client_tag=key, preview=NONE, **options)
    request.options.ClearField("seed")
    return request


def billed(url: str, key: str) -> int:
    return int(rows(url, f"SELECT count(*) FROM record WHERE billable AND client_tag = '{key}'")[0][0])


async def test_a_crowd_while_the_job_ends(racing: tuple[Serving, str]) -> None:
    """Twenty connections that ask the same, over and over until it has ended, get one image for one bill."""
    server, url = racing
    key, over = str(uuid.uuid4()), asyncio.Event()

    async def one(number: int) -> list[Told]:
        heard = []
        async with opened(server.target, ("klein.number", number)) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            while not (over.is_set() and heard):
                try:
                    heard.append(await told(stub.Generate(asked(key))))
                    over.set()
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # a job has eight readers
                        raise
                    await asyncio.sleep(0.02)
        return heard

    heard = [each for several in await asyncio.gather(*map(one, range(CROWD))) for each in several]
    assert len({each.data for each in heard}) == len(set.union(*(each.request_ids for each in heard))) == 1
    assert all(each.is_in_order for each in heard)
    assert [each.accepted.is_replay for each in heard if each.accepted].count(False) == 1
    assert billed(url, key) == 1


@pytest.mark.parametrize("how", ["cancel", "leave"])
async def test_ending_it_at_every_moment(
    racing: tuple[Serving, str], stub: image_pb2_grpc.ImageServiceStub, how: str
) -> None:
    """Whenever it is cancelled by its key, or left by its reader, the next request gets its image, and a bill is for an
    image: never two for one drawing, none for what was cancelled before it was finished.
    """
    url = racing[1]
    begin = asyncio.get_running_loop().time()
    await told(stub.Generate(asked(str(uuid.uuid4()))))
    whole = asyncio.get_running_loop().time() - begin
    for moment in range(MOMENTS):
        key = str(uuid.uuid4())
        call = stub.Generate(asked(key))
        await until(call, "accepted")
        await asyncio.sleep(whole * 1.2 * moment / MOMENTS)
        if how == "leave":
            call.cancel()
        else:
            await stub.Cancel(image_pb2.CancelRequest(idempotency_key=key))
            call.cancel()
        paid = await settled(racing[0], url, key)
        again = await told(stub.Generate(asked(key)))
        assert again.accepted is not None
        assert again.data
        if how == "leave":
            assert again.accepted.is_replay == bool(paid)
            assert billed(url, key) == 1
        else:
            assert not again.accepted.is_replay
            assert billed(url, key) == paid + 1


async def settled(server: Serving, url: str, key: str) -> int:
    """How often it was billed, once it has its record."""
    await server.counts("klein_running_requests", 0)
    async with asyncio.timeout(30):
        while not rows(url, f"SELECT 1 FROM record WHERE client_tag = '{key}'"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return billed(url, key)


async def test_a_detached_job_outlives_its_stream(stub: image_pb2_grpc.ImageServiceStub) -> None:
    """The deadline of who asked for DETACH ends his stream alone; the same key fetches the image."""
    key = str(uuid.uuid4())
    request = asked(key, 50, on_disconnect="ON_DISCONNECT_DETACH")
    request.options.width = request.options.height = 256
    code, _, _ = await refused_late(stub.Generate(request, timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    fetched = await told(stub.Attach(image_pb2.AttachRequest(idempotency_key=key)))
    assert fetched.data
    assert (await told(stub.Generate(request))).data == fetched.data


async def refused_late(call: "grpc.aio.UnaryStreamCall") -> tuple[grpc.StatusCode, str, None]:
    """As `refused`; at a deadline gRPC itself may speak, without details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await told(call)
    return caught.value.code(), caught.value.details() or "", None


async def test_all_readers_of_a_job_that_fails(faulty: Serving) -> None:
    """Who attached hears of the failure as who asked, and the key is free at once, for another request too."""
    key = str(uuid.uuid4())
    request = asked(key, 4)
    request.prompt = FAILS
    async with opened(faulty.target) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        first = stub.Generate(request)
        await until(first, "accepted")
        second = stub.Generate(request)
        outcomes = await asyncio.gather(refused(first), refused(second))
        assert [reason for _, reason, _ in outcomes] == ["INTERNAL", "INTERNAL"]
        fine = await told(stub.Generate(asked(key)))
        assert fine.accepted is not None
        assert not fine.accepted.is_replay


async def test_a_drain_and_a_restart(tmp_path: Path) -> None:
    """A detached job is finished by the drain, a stream that lasts too long is taken up again by kleinclient: each has
    its image and one bill, and no image waits for a key that nobody knows any more.
    """
    url, detached, long = f"sqlite:///{tmp_path}/usage.db", str(uuid.uuid4()), str(uuid.uuid4())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"KLEINSERVE_DRAIN_GRACE_SECONDS": "2", "KLEINSERVE_INTAKE_WORKERS": "1", "KLEINSERVE_MAX_STEPS": "2000"}
    settings["KLEINSERVE_STEP_TOKENS_MAX"] = "1"
    events: list[str] = []

    async with AsyncClient(f"127.0.0.1:{port}") as klein:
        with ExitStack() as stack:
            server = stack.enter_context(killed("--port", port, "--ledger", url, **settings))
            stream = klein.generate(
                "a star",
                size=(128, 128),
                steps=600,
                idempotency_key=long,
                client_tag=long,
                priority="batch",
                timeout=250,
            )
            started = asyncio.Event()

            async def read() -> None:
                async for event in stream:
                    events.append(type(event).__name__)
                    if isinstance(event, Started):
                        started.set()

            reading = asyncio.create_task(read())
            await started.wait()
            asking = klein.generate("a disc", size=(64, 64), steps=1, idempotency_key=detached, client_tag=detached,
                                    detach=True, priority="interactive")  # fmt: skip
            async for event in asking:
                if isinstance(event, Accepted):
                    break
            server.process.terminate()
            assert await asyncio.to_thread(server.process.wait, 60) == 0
        with killed("--port", port, "--ledger", url, **settings):
            await reading
            image = await klein.generate("a disc", size=(64, 64), steps=1, idempotency_key=detached, detach=True)
    assert Retrying.__name__ in events
    assert events.count("Image") == 1
    assert image.data
    assert (billed(url, long), billed(url, detached)) == (1, 1)
    assert rows(url, "SELECT count(*) FROM job WHERE state = 'running'") == [(0,)]
