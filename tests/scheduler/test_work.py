"""What one admitted request says of itself."""

from kleinserve.scheduler.work import Need

from tests.scheduler.stage import TINY, Stage


def test_it_is_begun_when_its_prompt_and_references_are_encoded() -> None:
    """And counts its steps down."""
    work = Stage().work(TINY)
    assert work.steps_left == 4
    begun = {}
    for work.need in Need:
        begun[work.need] = work.is_begun
    assert begun == {need: need not in (Need.TEXT, Need.REFERENCES) for need in Need}


def test_who_never_started_has_waited_until_now() -> None:
    """Its prompt's time is not waiting; what it took of the accelerator is said in whole microseconds."""
    stage = Stage()
    work = stage.work(TINY)
    stage.aside_until_idle()
    spent = work.spent(stage.clock() + 2.0)
    assert round(spent.timings.queue, 6) == 2.0
    assert spent.timings.text == 0.02
    assert (spent.steps_run, spent.accelerator_microseconds) == (0, 20_000)


def test_it_says_nothing_of_its_request_in_a_log() -> None:
    """Its references are megabytes, its prompt is its caller's."""
    assert "a star" not in repr(Stage().work(TINY))
