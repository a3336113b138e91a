"""What is done before the first step, and between two passes."""

import pytest

from tests.scheduler.stage import MEGAPIXEL, TINY, Stage


def sample(of: Stage, name: str, **labels: str) -> float:
    """A metric's value."""
    return of.metrics.registry.get_sample_value(name, labels) or 0.0


def test_prompts_are_read_together_and_references_one_by_one() -> None:
    """Ten requests: eight prompts at most in one unit, one unit for each one's references."""
    stage = Stage()
    works = [stage.work(TINY, references=1, prompt=str(i)) for i in range(10)]
    stage.aside_until_idle()
    texts = [len(renders) for name, renders in stage.engine.calls if name == "text"]
    begun = [renders for name, renders in stage.engine.calls if name == "begin"]
    assert texts == [8, 2]
    assert sorted(map(len, begun)) == [1] * 10
    assert all(work.render.is_begun for work in works)


def test_seconds_go_to_who_waited_and_accelerator_seconds_are_divided() -> None:
    """Four prompts in one unit: each waited for all of it, each pays a quarter; references pay for themselves."""
    stage = Stage()
    works = [stage.work(TINY, references=i, prompt=str(i)) for i in range(4)]
    stage.aside_until_idle()
    for i, work in enumerate(works):
        assert work.text_seconds == pytest.approx(0.08)
        assert work.references_seconds == pytest.approx(0.1 * i)
        assert work.accelerator_seconds == pytest.approx(0.02 + 0.1 * i)


def test_what_the_caches_held_is_counted_and_teaches_nothing() -> None:
    """A prompt that was found took no time: the prediction stays, and it is not charged."""
    stage = Stage()
    text = stage.engine.text

    def found(renders):  # type: ignore[no-untyped-def]
        yield from text(renders)
        for render in renders:
            render.prompt_hit = True

    stage.engine.text = found  # type: ignore[method-assign]
    work = stage.work(TINY)
    drift = stage.scheduler._forecast.cost.lines["text"].drift
    stage.engine.text_line.per_unit = 1.0
    stage.aside_until_idle()
    assert stage.scheduler._forecast.cost.lines["text"].drift == drift
    assert sample(stage, "klein_cache_events_total", cache="prompt", outcome="hit") == 1
    assert sample(stage, "klein_stage_seconds_count", stage="text") == 0
    assert work.render.is_begun


def test_what_was_not_cached_is_learned_from() -> None:
    """Prompts and references that take twice as long are foreseen so after a while."""
    stage = Stage()
    stage.engine.text_line.per_unit *= 2
    stage.engine.references_line.per_unit *= 2
    for i in range(30):
        stage.work(TINY, references=1, prompt=str(i))
        stage.finish()
    lines = stage.scheduler._forecast.cost.lines
    assert lines["text"].seconds(1) == pytest.approx(0.04, rel=0.1)
    assert lines["references"].seconds(1) == pytest.approx(0.2, rel=0.1)
    assert sample(stage, "klein_cache_events_total", cache="reference", outcome="miss") == 30
    assert sample(stage, "klein_stage_seconds_count", stage="references") == 30


def test_a_second_pass_begins_from_the_first_picture() -> None:
    """It asks for other tokens than the first one, which are counted as long as the work is there."""
    stage = Stage()
    stage.engine.passes = 2
    demand = stage.engine.demand
    large = stage.engine.render(Stage().work(MEGAPIXEL).request)
    stage.engine.demand = lambda render: demand(large if render.has_second else render)  # type: ignore[method-assign]
    work = stage.work(TINY)
    stage.finish()
    assert stage.told.decoded == [work]
    assert work.references_seconds == pytest.approx(0.1 / 256)
    assert work.demand.tokens == 100 + MEGAPIXEL.tokens
    assert (stage.scheduler._queue.tokens, stage.scheduler._queue.begun) == (0, 0)
