"""Hostile files at a fraction of the size that the limits allow; `python -m tests.codec.hostile` has them whole."""

import asyncio
from collections.abc import Iterator

import psutil
import pytest
from kleinserve.codec.intake import Intake
from kleinserve.config import Config
from kleinserve.errors import ReferenceUnsupported, RefusedReference

from tests.codec.files import picture, saved
from tests.codec.hostile import corpus

FILES = corpus(0.05)
UNSUPPORTED = {
    "progressive, 1000 scans",
    "fill bytes before the frame",
    "fill bytes in the scan",
    "junk before the frame",
    "comments",
    "WebP chunks",
}
WHOLE = {"stuffed bytes in the scan", "chunks", "zTXt bomb", "iTXt bomb", "iCCP bomb", "EXIF of 65,535 entries"}


@pytest.fixture(scope="module")
def intake() -> Iterator[Intake]:
    intake = Intake(Config(intake_workers=1), lambda outcome, seconds: None)
    intake.start()
    yield intake
    intake.kill()


@pytest.mark.parametrize("name", FILES)
async def test_every_hostile_file_has_an_answer(intake: Intake, name: str) -> None:
    """Each is decoded, or refused for what it is; the worker lives on, serves the next one and is no larger."""
    (worker,) = (child for child in psutil.Process().children() if "kleinserve.codec.worker" in child.cmdline())
    await intake.decode("good", [saved(picture())], keep_alpha=True)
    before = worker.memory_info().rss
    (answer,) = await asyncio.gather(intake.decode("hostile", [FILES[name]()], keep_alpha=True), return_exceptions=True)
    assert isinstance(answer, tuple | RefusedReference), answer
    assert isinstance(answer, ReferenceUnsupported) == (name in UNSUPPORTED), answer
    assert isinstance(answer, tuple) or name not in WHOLE, answer
    await intake.decode("good", [saved(picture())], keep_alpha=True)
    assert worker.is_running()
    assert worker.memory_info().rss < before + 4 * 2**20
