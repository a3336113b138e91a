"""What is predicted of works, and when it is predicted anew."""

import pytest
from kleinserve.core import Priority
from kleinserve.scheduler.cost import Cost, Line
from kleinserve.scheduler.forecast import Forecast
from kleinserve.scheduler.policy import BATCH, INTERACTIVE, STANDARD
from kleinserve.scheduler.turns import Turns
from kleinserve.scheduler.work import Need

from tests.scheduler.stage import MEGAPIXEL, QUARTER, TINY, Stage


def test_a_standing_is_kept_until_its_work_changes() -> None:
    """Asked twice it is the same object; after a step, and after a change of priority, another."""
    stage = Stage()
    forecast, work = stage.scheduler._forecast, stage.work()
    first = forecast.claim(work)
    stage.clock.now += 100.0
    assert forecast.claim(work) is first
    stage.aside_until_idle()
    begun = forecast.claim(work)
    assert begun.standing.remaining < first.standing.remaining
    stage.scheduler.stepping.turn()
    assert forecast.claim(work).standing.remaining < begun.standing.remaining
    assert forecast.claim(work).standing.steps_done == 1
    stage.scheduler.change(work, 1000.0, Priority.BATCH)
    assert forecast.claim(work).standing.priority == BATCH
    assert forecast.claim(work).standing.deadline == 1000.0


def test_all_are_predicted_anew_when_the_machine_has_drifted_and_not_for_every_run() -> None:
    """A step that took a little longer changes nothing; a slower machine does, twice a second at most."""
    stage = Stage()
    forecast, work = stage.scheduler._forecast, stage.work()
    first = forecast.claim(work)
    forecast.observe("step", 1000.0, 0.115)
    stage.clock.now += 10.0
    forecast.observe("step", 1000.0, 0.115)
    assert forecast.claim(work) is first
    for _ in range(50):
        forecast.observe("step", 1000.0, 0.22)
    assert forecast.claim(work) is not first
    epoch = forecast.epoch
    for _ in range(50):
        forecast.observe("step", 1000.0, 0.44)
    assert forecast.epoch == epoch
    stage.clock.now += 1.0
    forecast.observe("step", 1000.0, 0.44)
    assert forecast.epoch == epoch + 1


def test_the_whole_is_every_stage_and_remaining_what_is_left_of_it() -> None:
    """Prompt, references, steps and decode; each is taken off when it is done."""
    stage = Stage()
    forecast = stage.scheduler._forecast
    work = stage.work(QUARTER, references=1)
    step = 0.01 + 0.0001 * work.demand.tokens
    assert forecast.remaining(work) == pytest.approx(0.02 + 0.1 + 4 * step + 0.2)
    stage.aside_until_idle()
    assert forecast.remaining(work) == pytest.approx(4 * step + 0.2)
    stage.scheduler.stepping.turn()
    assert forecast.remaining(work) == pytest.approx(3 * step + 0.2)
    assert forecast.idle(work) == pytest.approx(0.02 + 0.1 + 4 * step + 0.2)


def test_units_beside_the_steps() -> None:
    """A prompt each, megapixels of references, of output, and of the first picture."""
    stage = Stage()
    forecast = stage.scheduler._forecast
    works = [stage.work(MEGAPIXEL, references=2), stage.work(QUARTER)]
    assert forecast.beside_seconds(Need.TEXT, works) == pytest.approx(0.04)
    assert forecast.beside_seconds(Need.REFERENCES, works[:1]) == pytest.approx(0.2)
    assert forecast.beside_seconds(Need.REFERENCES, works[1:]) == 0.0
    assert forecast.beside_seconds(Need.DECODE, works) == pytest.approx(1.0)
    assert forecast.beside_seconds(Need.SECOND, works[1:]) == pytest.approx(0.025)


def test_what_is_under_way_is_held_for_what_is_left_of_it() -> None:
    """A step that runs for another while; after it nothing."""
    stage = Stage()
    forecast, work = stage.scheduler._forecast, stage.work(MEGAPIXEL)
    stage.aside_until_idle()
    held: list[float] = []

    def passing(until: float) -> None:
        middle = (stage.clock.now + until) / 2
        held.append(forecast.claims([work], middle)[0].held / (until - stage.clock.now))

    stage.engine.passing = passing
    stage.scheduler.stepping.turn()
    assert held == [pytest.approx(0.5)]
    assert forecast.claims([work], stage.clock())[0].held == 0.0


def test_a_run_is_charged_by_parts_and_to_the_callers() -> None:
    """Three to one; where no part is known, equally."""
    stage = Stage()
    first, second = stage.work(caller="a"), stage.work(caller="b")
    stage.scheduler._forecast.charge([first, second], 4.0, [3.0, 1.0])
    stage.scheduler._forecast.charge([first, second], 1.0, [0.0, 0.0])
    assert (first.accelerator_seconds, second.accelerator_seconds) == (3.5, 1.5)
    assert (first.account.served, second.account.served) == (3.5, 1.5)


def test_the_policy_sees_priorities_in_its_order() -> None:
    """Interactive, standard, batch."""
    stage = Stage()
    works = [stage.work(TINY, priority=priority) for priority in Priority]
    seen = {work.priority: stage.scheduler._forecast.claim(work).standing.priority for work in works}
    assert seen == {Priority.INTERACTIVE: INTERACTIVE, Priority.STANDARD: STANDARD, Priority.BATCH: BATCH}


def test_another_cost_model_is_used_at_once() -> None:
    """As after calibration."""
    forecast = Forecast(Cost(), lambda: 0.0, Turns())
    work = Stage().work()
    assert forecast.remaining(work) == 0.0
    forecast.use(Cost({**Cost().lines, "text": Line(5.0, 0.0)}))
    assert forecast.remaining(work) == 5.0
