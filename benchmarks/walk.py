"""The files and functions of the server that one generation, and one edit, pass: `python -m benchmarks.walk`.

Counts distinct functions of `kleinserve` that any thread of the server enters from the request's message to 0.3 s after
its status, the second time that a request of its kind comes; `-v` names them. Workers that decode references are
processes of their own and not counted.
"""

import asyncio
import io
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import grpc
import kleinserve
from klein.v1 import image_pb2, image_pb2_grpc
from PIL import Image

ROOT = str(Path(kleinserve.__file__).parent)


class Walk:
    """Which functions were entered while `is_on`."""

    def __init__(self) -> None:
        self.seen: set[CodeType] = set()
        self.is_on = False

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(ROOT):
            self.seen.add(frame.f_code)

    def counts(self) -> tuple[int, int]:
        """Files and functions; comprehensions, generator expressions and lambdas are no functions of their own."""
        functions = {code for code in self.seen if not code.co_name.startswith("<")}
        return len({code.co_filename for code in functions}), len(functions)


async def _read(call: Any) -> None:
    async for _ in call:
        pass


async def walk() -> dict[str, Walk]:
    """Serve mini in this process, and follow a generation and an edit."""
    from kleinserve import app
    from kleinserve.codec.intake import Intake
    from kleinserve.config import Config
    from kleinserve.metrics import Metrics

    current = Walk()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(port=0, metrics_port=0, ledger=f"sqlite:///{folder}/usage.db")
        metrics = Metrics()
        intake = Intake(config, metrics.intake)
        intake.start()
        server = await app._server(config, metrics, intake, app._backend)
        threading.setprofile(lambda *arguments: current.profile(*arguments))  # of the threads that start now
        [line] = await server.start()
        sys.setprofile(lambda *arguments: current.profile(*arguments))
        file = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(file, "PNG")
        options = image_pb2.ImageOptions(width=64, height=64)
        requests = {
            "generation": image_pb2.GenerateRequest(prompt="a red circle", options=options),
            "edit": image_pb2.EditRequest(
                prompt="make it blue", references=[image_pb2.Reference(image=file.getvalue())], options=options
            ),
        }
        walks = {}
        async with grpc.aio.insecure_channel(line.split()[2].rstrip(","), [("grpc.enable_http_proxy", 0)]) as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            for name, request in requests.items():
                for is_counted in (False, True):
                    current = walks[name] = Walk()
                    current.is_on = is_counted
                    await _read(stub.Generate(request) if name == "generation" else stub.Edit(request))
                    await asyncio.sleep(0.3)
                    current.is_on = False
        sys.setprofile(None)
        await server.stop()
        intake.kill()
    return walks


def main() -> None:
    for name, made in asyncio.run(walk()).items():
        files, functions = made.counts()
        print(f"{name}: {files} files, {functions} functions")
        if "-v" in sys.argv:
            for code in sorted(made.seen, key=lambda code: (code.co_filename, code.co_firstlineno)):
                print(f"  {code.co_filename.removeprefix(ROOT)}:{code.co_firstlineno} {code.co_qualname}")


if __name__ == "__main__":
    main()
