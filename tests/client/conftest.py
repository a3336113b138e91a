"""A scripted server: it says what the test wrote, also what a real server never says, over real gRPC on a real port."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from klein.v1 import image_pb2 as pb
from klein.v1 import image_pb2_grpc, usage_pb2, usage_pb2_grpc
from kleinclient import AsyncClient, Client, Image, Preview, Retry

PICTURE = bytes(range(256)) * 8
CHUNK_BYTES = 1000
Script = Callable[[Any, grpc.ServicerContext], Iterator[pb.ImageEvent]]


def event(**kind: Any) -> pb.ImageEvent:
    return pb.ImageEvent(request_id="request-1", **kind)


def opening(steps: int = 2, **accepted: Any) -> Iterator[pb.ImageEvent]:
    """Everything before the image: accepted, queued, started, progress and preview of each step."""
    said = {"seed": 7, "width": 64, "height": 32, "steps": steps, "model": "mini", "guidance_scale": 1.0}
    yield event(accepted=pb.Accepted(**{**said, **accepted}))
    yield event(queued=pb.Queued(position=1, estimated_wait=Duration(seconds=2)))
    yield event(started=pb.Started(queue_wait=Duration(nanos=250_000_000)))
    for step in range(1, steps + 1):
        yield event(progress=pb.Progress(step=step, total_steps=steps))
        preview = pb.Preview(step=step, total_steps=steps, format=1, width=8, height=4, data=b"jpeg%d" % step)
        yield event(preview=preview)


def ending(**header: Any) -> Iterator[pb.ImageEvent]:
    """The image in chunks, then what it cost; `header` overrides what the header says."""
    said = {"format": 1, "mime_type": "image/png", "width": 64, "height": 32, "alpha_method": 1}
    digest = hashlib.sha256(PICTURE).digest()
    yield event(image_header=pb.ImageHeader(**{**said, "size_bytes": len(PICTURE), "sha256": digest, **header}))
    for offset in range(0, len(PICTURE), CHUNK_BYTES):
        yield event(image_chunk=pb.ImageChunk(offset=offset, data=PICTURE[offset : offset + CHUNK_BYTES]))
    yield completed()


def completed() -> pb.ImageEvent:
    usage = usage_pb2.Usage(
        output_pixels=2048, output_megapixels=1, cost_microusd=14_000, billable=True, price_version="test"
    )
    timings = pb.Timings(queue=Duration(nanos=20_000_000), denoise=Duration(nanos=400_000_000))
    return event(completed=pb.Completed(usage=usage, timings=timings, max_step_requests=3, previews_skipped=1))


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str,
    message: str = "no",
    *,
    retry_seconds: float | None = None,
    fields: dict[str, str] | None = None,
    quota: tuple[str, str] | None = None,
    **metadata: str,
) -> None:
    """End the call as the contract says: ErrorInfo always, RetryInfo, BadRequest and QuotaFailure where given."""
    said = {"request_id": "request-1", **metadata}
    info = error_details_pb2.ErrorInfo(reason=reason, domain="klein.v1", metadata=said)
    details: list[Any] = [info]
    if retry_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=words) for name, words in fields.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if quota:
        violation = error_details_pb2.QuotaFailure.Violation(subject=quota[0], description=quota[1])
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    answer = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(answer))


def whole(request: Any, context: grpc.ServicerContext) -> Iterator[pb.ImageEvent]:
    """A whole stream, as from a server that takes its time for nothing."""
    yield from opening()
    yield from ending()


@dataclass
class Scripted(image_pb2_grpc.ImageServiceServicer, usage_pb2_grpc.UsageServiceServicer):
    """Plays one script per call, the last one again and again, and remembers the requests."""

    scripts: list[Script] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    target: str = ""

    def play(self, *scripts: Script) -> None:
        self.scripts = list(scripts)

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        yield from script(request, context)

    Edit = Attach = Generate

    def GetCapabilities(self, request: Any, context: grpc.ServicerContext) -> Any:
        return next(iter(self.Generate(request, context)))

    Cancel = GetUsage = GetCapabilities
    ListUsageRecords = Generate


@contextmanager
def serving(
    scripted: Scripted,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    workers: int = 4,
    options: Sequence[tuple[str, int]] = (),
) -> Iterator[int]:
    """The scripted server on a port of its own, or on `port`; without mercy for what still runs at the end."""
    grpc_server = grpc.server(ThreadPoolExecutor(workers), options=options)
    image_pb2_grpc.add_ImageServiceServicer_to_server(scripted, grpc_server)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(scripted, grpc_server)
    address = f"127.0.0.1:{port}"
    found = grpc_server.add_secure_port(address, credentials) if credentials else grpc_server.add_insecure_port(address)
    scripted.target = f"127.0.0.1:{found}"
    grpc_server.start()
    try:
        yield found
    finally:
        grpc_server.stop(0).wait()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    with serving(scripted):
        yield scripted


QUICK = Retry(attempts=3, backoff=0.01, backoff_max=0.05, jitter=0.0)


class Blocking:
    """The blocking client, for tests that both clients must pass. `settings` are the client's."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"retry": QUICK}

    def events(self, target: str, rpc: str = "generate", *args: Any, hook: Any = None, **options: Any) -> list[Any]:
        """All that the stream says; `hook` hears each event at once."""
        said = []
        with Client(target, **self.settings) as klein:
            for each in getattr(klein, rpc)(*(args or ("a red circle",)), **options):
                said.append(each)
                if hook:
                    hook(each)
        return said

    def image(self, target: str, **options: Any) -> Image:
        with Client(target, **self.settings) as klein:
            return klein.generate("a red circle", **options).result()

    def previews(self, target: str) -> tuple[list[Preview], Image]:
        with Client(target, **self.settings) as klein:
            stream = klein.generate("a red circle")
            return list(stream.previews()), stream.result()

    def leave_early(self, target: str, wait: Callable[[], Any]) -> None:
        with Client(target, **self.settings) as klein:
            for _ in klein.generate("a red circle").previews():
                break
            wait()

    def ask(self, target: str, rpc: str, *args: Any, **options: Any) -> Any:
        with Client(target, **self.settings) as klein:
            answer = getattr(klein, rpc)(*args, **options)
            return list(answer) if rpc == "usage_records" else answer


class Asynchronous:
    """The asynchronous client, behind the same methods."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"retry": QUICK}

    def events(self, target: str, rpc: str = "generate", *args: Any, hook: Any = None, **options: Any) -> list[Any]:
        async def run() -> list[Any]:
            said = []
            async with AsyncClient(target, **self.settings) as klein:
                async for each in getattr(klein, rpc)(*(args or ("a red circle",)), **options):
                    said.append(each)
                    if hook:
                        await asyncio.to_thread(hook, each)
            return said

        return asyncio.run(run())

    def image(self, target: str, **options: Any) -> Image:
        async def run() -> Image:
            async with AsyncClient(target, **self.settings) as klein:
                return await klein.generate("a red circle", **options)

        return asyncio.run(run())

    def previews(self, target: str) -> tuple[list[Preview], Image]:
        async def run() -> tuple[list[Preview], Image]:
            async with AsyncClient(target, **self.settings) as klein:
                stream = klein.generate("a red circle")
                return [preview async for preview in stream.previews()], await stream

        return asyncio.run(run())

    def leave_early(self, target: str, wait: Callable[[], Any]) -> None:
        async def run() -> None:
            async with AsyncClient(target, **self.settings) as klein:
                async for _ in klein.generate("a red circle").previews():
                    break
                await asyncio.to_thread(wait)

        asyncio.run(run())

    def ask(self, target: str, rpc: str, *args: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(target, **self.settings) as klein:
                answer = getattr(klein, rpc)(*args, **options)
                return [record async for record in answer] if rpc == "usage_records" else await answer

        return asyncio.run(run())


@pytest.fixture(params=[Blocking, Asynchronous], ids=["blocking", "asynchronous"])
def caller(request: pytest.FixtureRequest) -> Blocking | Asynchronous:
    """Each of the two clients in turn."""
    return request.param()
