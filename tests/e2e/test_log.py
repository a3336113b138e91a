"""A server whose log goes nowhere: nobody who calls it notices, and it counts what was lost."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc
import pytest
from klein.v1 import image_pb2_grpc

from tests.e2e.calls import NONE, final, generate, opened, refused
from tests.e2e.conftest import served

IMAGES, AT_ONCE = int(os.environ.get("KLEIN_LOG_IMAGES", "60")), 4
PIPE_BYTES = 4096  # the smallest: it is full after a few lines
DROPPED = "klein_log_dropped_total"


@contextmanager
def closed_pipe() -> Iterator[int]:
    """A pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextmanager
def unread_pipe() -> Iterator[int]:
    """A pipe whose reader reads nothing."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield writing
    os.close(reading)
    os.close(writing)


@contextmanager
def full_disk() -> Iterator[int]:
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


@pytest.mark.parametrize("log", [closed_pipe, unread_pipe, full_disk])
async def test_a_log_that_nobody_takes(log: Callable[[], AbstractContextManager[int]]) -> None:
    """Images, refusals, metrics and the drain are as with a healthy log; standard output has the announcement alone."""
    with log() as file, served(log=file) as server:
        async with opened(server.target) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            for first in range(0, IMAGES, AT_ONCE):
                asked = [generate(seed, steps=1, preview=NONE) for seed in range(first, first + AT_ONCE)]
                await asyncio.gather(*(final(channel, request) for request in asked))
            code, reason, _ = await refused(stub.Generate(generate(steps=51)))
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert server.page("/readyz")[0] == 200
        assert server.counted('klein_requests_total{code="OK",operation="generate",reason=""}') == IMAGES
        if log is unread_pipe:  # what does not fit waits in a queue of 10,000 lines, which tests/test_logs.py fills
            assert server.counted(DROPPED) == 0
        else:
            async with asyncio.timeout(30):
                while server.counted(DROPPED) < IMAGES + 1:  # noqa: ASYNC110 - a scrape has nothing to await
                    await asyncio.sleep(0.05)
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""
