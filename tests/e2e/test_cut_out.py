"""Cut-outs of a checkpoint without native alpha, in two passes, through the server."""

import io
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from klein.v1 import image_pb2, image_pb2_grpc
from PIL import Image

from tests.e2e.calls import generate, opened, refused, until
from tests.e2e.conftest import Serving, served
from tests.e2e.faults import MOVED, STILL
from tests.engine.checkpoints import klein

CUT_OUT = image_pb2.OutputOptions(background="BACKGROUND_TRANSPARENT")


@pytest.fixture(scope="module")
def opaque(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of random weights whose VAE has 3 channels; for two prompts faults.py draws what it decodes."""
    model = klein(tmp_path_factory.mktemp("klein"))
    with served("--model", str(model), module="tests.e2e.faults") as server:
        yield server


def asked(prompt: str) -> image_pb2.GenerateRequest:
    request = generate(steps=3, output=CUT_OUT)
    request.prompt = prompt
    return request


@pytest.mark.parametrize(
    ("prompt", "method"), [(STILL, "ALPHA_METHOD_DIFFERENCE"), (MOVED, "ALPHA_METHOD_KEY")], ids=["still", "moved"]
)
async def test_two_passes(opaque: Serving, prompt: str, method: str) -> None:
    """The subject is drawn on white, then on black; its alpha is their difference, or white's key where it moved."""
    async with opened(opaque.target) as channel:
        events = [event async for event in image_pb2_grpc.ImageServiceStub(channel).Generate(asked(prompt))]
    progress = [(event.progress.step, event.progress.total_steps) for event in events if event.HasField("progress")]
    assert progress[-1] == (6, 6)
    assert {total for _, total in progress} == {6}
    assert [step for step, _ in progress] == sorted({step for step, _ in progress})
    assert {event.preview.total_steps for event in events if event.HasField("preview")} == {6}
    assert events[0].accepted.steps == 3
    assert events[-1].completed.usage.cost_microusd == 14_000  # one image, however many passes
    header = next(event.image_header for event in events if event.HasField("image_header"))
    assert image_pb2.AlphaMethod.Name(header.alpha_method) == method
    with Image.open(io.BytesIO(b"".join(event.image_chunk.data for event in events))) as picture:
        pixels = np.asarray(picture)
    assert pixels[32, 32].tolist() == [204, 51, 26, 255]
    assert pixels[0, 0].tolist() == [0, 0, 0, 0]
    assert 0.15 < (pixels[..., 3] > 127).mean() < 0.25  # a disc of a quarter of the edge as radius: 0.196


async def test_both_methods_are_capabilities(opaque: Serving) -> None:
    """The capabilities name the methods that this checkpoint can cut out by, and not the native one."""
    async with opened(opaque.target) as channel:
        answer = await image_pb2_grpc.ImageServiceStub(channel).GetCapabilities(image_pb2.GetCapabilitiesRequest())
    methods = [image_pb2.AlphaMethod.Name(method) for method in answer.alpha_methods]
    assert methods == ["ALPHA_METHOD_OPAQUE", "ALPHA_METHOD_DIFFERENCE", "ALPHA_METHOD_KEY"]


async def test_alpha_unavailable(opaque: Serving) -> None:
    """Where neither pass shows a background, the request fails after its steps, unpaid, with ALPHA_UNAVAILABLE."""
    paid = opaque.counted("klein_cost_microusd_total")
    async with opened(opaque.target) as channel:
        call = image_pb2_grpc.ImageServiceStub(channel).Generate(asked("noise without a background"))
        await until(call, "preview")
        code, reason, details = await refused(call)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ALPHA_UNAVAILABLE")
    assert set(details) == {"ErrorInfo"}
    assert opaque.counted("klein_cost_microusd_total") == paid
