"""Pictures become files and previews in threads, in order, and what is newer replaces what waits."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import pytest
from kleinserve.backend.encoding import Encoding
from kleinserve.core import (
    AlphaMethod,
    ImageFormat,
    Output,
    Pixels,
    Preview,
    PreviewFormat,
    PreviewOptions,
    Progress,
    Size,
)
from kleinserve.errors import AlphaUnavailable
from kleinserve.metrics import Metrics
from PIL import Image

from tests.desk.requests import REQUEST

PICTURE = Pixels(Size(64, 64), 3, bytes([200, 30, 10] * 64 * 64))
METRICS = Metrics()


@pytest.fixture
async def encoding() -> AsyncIterator[Encoding]:
    """With two threads, as by default."""
    made = Encoding("mini", 2, METRICS)
    yield made
    made.close()


@dataclass
class Held:
    """Pictures that the device gives when `gate` is open; `asked` counts who waits for one."""

    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[int] = field(default_factory=list)

    def drawn(self, step: int, picture: Any = PICTURE) -> Callable[[], Any]:
        def draw() -> Any:
            self.asked.append(step)
            assert self.gate.wait(30.0)
            if isinstance(picture, Exception):
                raise picture
            return picture

        return draw


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_of_previews_that_wait_the_newest_is_encoded(encoding: Encoding) -> None:
    """One of a request at a time; those that it replaced are counted with it."""
    posted: list[Preview] = []
    held = Held()
    encoding.preview(REQUEST, held.drawn(1), Progress(1, 9, 0.0), posted.append)
    await until(lambda: held.asked)
    for step in (2, 3, 4):
        encoding.preview(REQUEST, held.drawn(step), Progress(step, 9, 0.0), posted.append)
    held.gate.set()
    await until(lambda: len(posted) == 2)
    assert [(preview.step, preview.skipped) for preview in posted] == [(1, 0), (4, 2)]
    assert held.asked == [1, 4]
    assert (posted[0].width, posted[0].height, posted[0].format, posted[0].total_steps) == (
        64,
        64,
        PreviewFormat.JPEG,
        9,
    )


async def test_requests_do_not_wait_for_one_another(encoding: Encoding) -> None:
    """While one's preview is held by the device, another's is encoded."""
    posted: list[str] = []
    slow, quick = Held(), Held()
    quick.gate.set()
    encoding.preview(REQUEST, slow.drawn(1), Progress(1, 4, 0.0), lambda preview: posted.append("slow"))
    other = replace(REQUEST, request_id="b")
    encoding.preview(other, quick.drawn(1), Progress(1, 4, 0.0), lambda preview: posted.append("quick"))
    await until(lambda: posted)
    slow.gate.set()
    await until(lambda: len(posted) == 2)
    assert posted == ["quick", "slow"]


async def test_a_latent_is_posted_as_it_is(encoding: Encoding) -> None:
    """It is no picture: nothing is encoded, what was skipped before it is said."""
    latent = Preview(2, 4, PreviewFormat.LATENT, 4, 4, 32, b"latent")
    posted: list[Preview] = []
    held = Held()
    for step in (1, 2):
        encoding.preview(REQUEST, held.drawn(step, latent), Progress(step, 4, 0.0), posted.append)
    held.gate.set()
    await until(lambda: posted)
    assert posted == [replace(latent, skipped=1)]


async def test_a_preview_that_fails_costs_nothing_else(encoding: Encoding) -> None:
    """It is counted, the next one is encoded, and so is the image."""
    posted: list[Preview] = []
    held = Held()
    held.gate.set()
    failed = METRICS.previews.labels("failed")._value.get()
    encoding.preview(REQUEST, held.drawn(1, ValueError("a defect")), Progress(1, 4, 0.0), posted.append)
    await until(lambda: METRICS.previews.labels("failed")._value.get() == failed + 1)
    encoding.preview(REQUEST, held.drawn(2), Progress(2, 4, 0.0), posted.append)
    await encoding.file(REQUEST, lambda: (PICTURE, AlphaMethod.OPAQUE))
    assert [preview.step for preview in posted] == [2]


async def test_the_last_preview_goes_before_the_image(encoding: Encoding) -> None:
    """The file may be ready first; it is given when the preview that is being encoded has been posted."""
    posted: list[Preview] = []
    held, resolved = Held(), threading.Event()
    encoding.preview(REQUEST, held.drawn(4), Progress(4, 4, 0.0), posted.append)
    await until(lambda: held.asked)

    def resolve() -> tuple[Pixels, AlphaMethod]:
        resolved.set()
        return PICTURE, AlphaMethod.OPAQUE

    making = asyncio.ensure_future(encoding.file(REQUEST, resolve))
    await until(resolved.is_set)
    assert not making.done()
    held.gate.set()
    await making
    assert [preview.step for preview in posted] == [4]


async def test_what_has_ended_has_no_more_previews(encoding: Encoding) -> None:
    """Those that wait are forgotten; the one at hand may still come."""
    posted: list[Preview] = []
    held = Held()
    encoding.preview(REQUEST, held.drawn(1), Progress(1, 4, 0.0), posted.append)
    await until(lambda: held.asked)
    encoding.preview(REQUEST, held.drawn(2), Progress(2, 4, 0.0), posted.append)
    encoding.forget(REQUEST.request_id)
    encoding.forget("never heard of")
    held.gate.set()
    await until(lambda: posted)
    await until(lambda: not encoding._encoding)
    assert [preview.step for preview in posted] == [1]


async def test_the_file_is_what_was_asked_for(encoding: Encoding) -> None:
    """Its format and its provenance are the request's, its method the engine's; its seconds were measured."""
    output = Output(ImageFormat.PNG, embed_prompt=True)
    request = replace(REQUEST, options=replace(REQUEST.options, output=output))
    image, seconds = await encoding.file(request, lambda: (PICTURE, AlphaMethod.NATIVE))
    assert (image.format, image.alpha_method, image.size) == (ImageFormat.PNG, AlphaMethod.NATIVE, Size(64, 64))
    assert seconds > 0
    with Image.open(BytesIO(image.data)) as opened:
        assert opened.convert("RGB").tobytes() == PICTURE.data
    for words in (b"a star", b"mini", b"trainedAlgorithmicMedia"):
        assert words in image.data


async def test_an_image_without_a_background_raises(encoding: Encoding) -> None:
    """What resolving raises is the request's answer."""

    def resolve() -> tuple[Pixels, AlphaMethod]:
        raise AlphaUnavailable("no background")

    with pytest.raises(AlphaUnavailable):
        await encoding.file(REQUEST, resolve)


async def test_max_edge_bounds_a_preview(encoding: Encoding) -> None:
    """It is made smaller, never larger, in the format asked for."""
    wanted = PreviewOptions(max_edge=16, format=PreviewFormat.PNG)
    request = replace(REQUEST, options=replace(REQUEST.options, preview=wanted))
    posted: list[Preview] = []
    encoding.preview(request, lambda: PICTURE, Progress(1, 4, 0.0), posted.append)
    await until(lambda: posted)
    assert (posted[0].width, posted[0].height, posted[0].format) == (16, 16, PreviewFormat.PNG)
