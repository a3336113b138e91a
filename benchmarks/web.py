"""How much later a preview reaches a page than a gRPC client: `python -m benchmarks.web`.

Both read the same image of the same server on this machine, the page in headless Chromium by the playground's module.
In half of the runs the page asks first and the client attaches, in the other half the other way round.
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from klein.v1 import image_pb2, image_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
RUNS, STEPS = 4, 20


def main() -> None:
    with served() as (target, base):
        pairs = [pair for run in range(RUNS) for pair in asyncio.run(measured(target, base, page_first=run % 2 == 0))]
    late = sorted((page - client) * 1000 for client, page in pairs)
    low, _, high = statistics.quantiles(late, n=4)
    median = statistics.median(late)
    print(f"a preview reaches the page {median:.1f} ms after the gRPC client (median of {len(late)} pairs)")
    print(f"quartiles {low:.1f} and {high:.1f} ms, least {late[0]:.1f}, most {late[-1]:.1f}; {os.cpu_count()} cores")


async def measured(target: str, base: str, *, page_first: bool) -> list[tuple[float, float]]:
    """When the client and the page had each preview that both had, in seconds since 1970."""
    key, method = f"bench-{uuid.uuid4().hex}", "generate" if page_first else "attach"
    command = ("node", str(ROOT / "benchmarks" / "web.mjs"), base, key, str(STEPS), method)
    page = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert page.stdin is not None
    assert page.stdout is not None
    lines = (json.loads(line) async for line in page.stdout)
    assert (await anext(lines))["kind"] == "ready"
    async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        if page_first:
            assert (await anext(lines))["kind"] == "accepted"
            stream = stub.Attach(image_pb2.AttachRequest(idempotency_key=key))
        else:
            options = image_pb2.ImageOptions(width=256, height=256, seed=1, steps=STEPS, idempotency_key=key)
            stream = stub.Generate(image_pb2.GenerateRequest(prompt="a red circle", options=options))
        client: dict[int, float] = {}
        async for event in stream:
            if event.HasField("accepted") and not page_first:
                page.stdin.write(b"\n")
            if event.HasField("preview"):
                client[event.preview.step] = time.time()
    seen = {line["step"]: line["at"] async for line in lines if line["kind"] == "preview"}
    assert await page.wait() == 0
    return [(client[step], seen[step]) for step in sorted(client.keys() & seen.keys())]


@contextmanager
def served() -> Iterator[tuple[str, str]]:
    """A server with a web port: its target, and the page's address."""
    command = [sys.executable, "-m", "kleinserve", "serve", "--port", "0", "--metrics-port", "0", "--web-port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--ledger", f"sqlite:///{folder}/usage.db"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            serving, web = (re.search(r" on ([^ ,]+)", next(process.stdout)) for _ in range(2))
            assert serving is not None
            assert web is not None
            yield serving[1], f"http://{web[1]}"
            process.terminate()


if __name__ == "__main__":
    main()
