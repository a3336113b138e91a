"""What the asynchronous client does with event loops, tasks and its end."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from kleinclient import AsyncClient, Cancelled, Client

from tests.client.conftest import PICTURE, opening, refuse, whole


@pytest.fixture
def begun(server: Any) -> threading.Event:
    """The server begins with a request and never ends it; set when it has begun."""
    event, release = threading.Event(), threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(release.set)
        event.set()
        yield from opening()
        release.wait(20)

    server.play(endless)
    return event


def test_made_before_the_loop(server: Any) -> None:
    """A client, and even its stream, may be made before the event loop runs."""
    server.play(whole)
    klein = AsyncClient(server.target)
    stream = klein.generate("a red circle")

    async def run() -> bytes:
        async with klein:
            return (await stream).data

    assert asyncio.run(run()) == PICTURE


def test_one_loop(server: Any) -> None:
    """A client that is used in a second event loop says so."""
    server.play(whole)
    klein = AsyncClient(server.target)

    async def run() -> None:
        await klein.generate("a red circle")

    asyncio.run(run())
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(run())


async def test_close_ends_pending_images(server: Any, begun: threading.Event) -> None:
    """Closing the client ends an image that somebody awaits with Cancelled, so that a TaskGroup fails."""
    klein = AsyncClient(server.target)

    async def close() -> None:
        await asyncio.to_thread(begun.wait, 10)
        await klein.close()

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(klein.generate("a red circle").result())
            group.create_task(close())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.group_contains(Cancelled)


@pytest.mark.parametrize("rpc", ["capabilities", "usage_records", "generate"])
async def test_close_ends_what_waits_to_be_sent_again(server: Any, rpc: str) -> None:
    """Who waits to ask again, or for an answer, gets Cancelled too, at once."""
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def later(request: Any, context: grpc.ServicerContext) -> Any:
        loop.call_soon_threadsafe(refused.set)
        refuse(context, grpc.StatusCode.UNAVAILABLE, "NOT_READY", retry_seconds=20)
        yield from ()

    from tests.client.test_client import END, START

    server.play(later)
    klein = AsyncClient(server.target)

    async def ask() -> Any:
        match rpc:
            case "usage_records":
                return [record async for record in klein.usage_records(START, END)]
            case "capabilities":
                return await klein.capabilities()
        return await klein.generate("x")

    task = asyncio.create_task(ask())
    await asyncio.wait_for(refused.wait(), 10)
    await asyncio.sleep(0.05)
    await klein.close()
    with pytest.raises(Cancelled):
        await asyncio.wait_for(task, 5)


def test_closing_the_blocking_client(server: Any, begun: threading.Event) -> None:
    """A thread that waits for an image when another closes the client gets Cancelled."""
    klein = Client(server.target)
    stream = klein.generate("a red circle")
    threading.Thread(target=lambda: (begun.wait(10), klein.close())).start()
    with pytest.raises(Cancelled):
        stream.result()


def test_an_interrupt_ends_the_request(server: Any) -> None:
    """Ctrl-C leaves a client at once, whatever gRPC was doing, and its requests end at the server."""
    ended = threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        yield from opening()
        ended.wait(20)

    server.play(endless)
    klein = Client(server.target)

    def interrupted() -> None:
        with klein:
            next(iter(klein.generate("a red circle")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended.wait(10)
    klein.close()


async def test_cancelled_task_stays_cancelled(server: Any, begun: threading.Event) -> None:
    """A task that is cancelled while it waits is cancelled, and not Cancelled."""
    async with AsyncClient(server.target) as klein:
        task = asyncio.create_task(klein.generate("a red circle").result())
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
