"""What is done after the last step."""

import pytest
from kleinserve.core import Size

from tests.scheduler.stage import QUARTER, TINY, Stage


def decodes(stage: Stage) -> list[tuple[Size, int]]:
    """Of every decode the size and the number of pictures."""
    return [(renders[0].request.size, len(renders)) for name, renders in stage.engine.calls if name == "decode"]


def denoised(stage: Stage, *sizes: Size) -> None:
    """Works of these sizes that wait to be decoded."""
    works = [stage.work(size) for size in sizes]
    stage.denoise(*works)


def test_pictures_of_one_size_are_decoded_together() -> None:
    """Two sizes, two decodes; a finished picture's time is told to each, its cost divided."""
    stage = Stage()
    denoised(stage, TINY, QUARTER, TINY)
    stage.finish()
    assert sorted(decodes(stage), key=str) == [(QUARTER, 1), (TINY, 2)]
    tiny = [work for work in stage.told.decoded if work.request.size == TINY]
    assert [work.decode_seconds for work in tiny] == [pytest.approx(0.8 * 2 / 256)] * 2


def test_four_at_most_and_as_many_as_the_pixels_allow() -> None:
    """Whoever else waits, waits for all of them; a larger picture than the bound is decoded alone."""
    stage = Stage()
    denoised(stage, *[TINY] * 6)
    stage.finish()
    assert [count for _, count in decodes(stage)] == [4, 2]
    bounded = Stage({"decode_pixels_max": 2 * QUARTER.pixels})
    denoised(bounded, *[QUARTER] * 3)
    bounded.finish()
    assert [count for _, count in decodes(bounded)] == [2, 1]
    small = Stage({"decode_pixels_max": 1})
    denoised(small, TINY, TINY)
    small.finish()
    assert [count for _, count in decodes(small)] == [1, 1]


def test_who_goes_while_others_are_decoded_with_it_is_told_so() -> None:
    """The others have their pictures."""
    stage = Stage()
    denoised(stage, TINY, TINY)
    stage.scheduler.aside.turn()
    gone, other = stage.scheduler._queue.works()
    stage.scheduler.cancel(gone)
    stage.finish()
    assert list(stage.told.failed) == [gone]
    assert stage.told.decoded == [other]
    assert gone.decode_seconds == other.decode_seconds


def test_decoding_is_learned_from_and_counted() -> None:
    """One that takes twice as long is foreseen so after a while."""
    stage = Stage()
    stage.engine.decode_line.per_unit *= 2
    for _ in range(30):
        stage.work(QUARTER)
        stage.finish()
    assert stage.scheduler._forecast.cost.lines["decode"].seconds(1) == pytest.approx(1.6, rel=0.1)
    assert stage.metrics.registry.get_sample_value("klein_stage_seconds_count", {"stage": "decode"}) == 30
