"""The policy in the real loop on a simulated device, beside what other servers do, and its rules one by one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random
from statistics import fmean

import pytest
from kleinserve.core import Priority, Size
from kleinserve.scheduler.policy import BATCH, INTERACTIVE, STANDARD, STRETCH, Standing, order, pick
from kleinserve.scheduler.turns import Account

from tests.scheduler.scripted import ScriptedRender
from tests.scheduler.simulator import (
    KLEIN,
    KLEIN_MIX,
    LARGE,
    MINI,
    MINI_MIX,
    SMALL,
    Serve,
    Simulated,
    Simulation,
    equal_share,
    first_come,
    first_come_with_deadlines,
    goodput,
    ours,
    poisson,
    quantile,
    same_shape,
)


@cache
def served(serve: Serve, load: float = 0.8, seed: int = 1, priority: Priority = Priority.STANDARD) -> list[Simulated]:
    """3,000 requests of the mix at this load of one after another, served."""
    arrivals = poisson(KLEIN_MIX, load, 3000, KLEIN, seed)
    for one in arrivals:
        one.priority = priority
    serve(arrivals, KLEIN)
    return arrivals


def latencies(arrivals: list[Simulated], size: Size) -> list[float]:
    return [one.latency for one in arrivals if one.size == size]


@pytest.mark.parametrize("other", [first_come, equal_share, same_shape], ids=["first come", "equal", "same shape"])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_halves_the_mean_latency_and_cuts_the_small_ones_tail_to_a_fifth(other: Serve, seed: int) -> None:
    """At 80 % load, against first come first served, equal shares and static batches of one shape."""
    mine, theirs = served(ours, seed=seed), served(other, seed=seed)
    assert fmean(one.latency for one in mine) < 0.5 * fmean(one.latency for one in theirs)
    assert quantile(latencies(mine, SMALL), 0.99) < 0.2 * quantile(latencies(theirs, SMALL), 0.99)


def test_the_largest_class_is_bounded_by_the_stretch() -> None:
    """No 4-megapixel request takes more than `STRETCH` times its lone time at 80 % load, though small ones overtake."""
    worst = max(one.latency / one.alone for one in served(ours) if one.size == LARGE)
    assert worst <= STRETCH[STANDARD]


def test_large_requests_that_are_overdue_do_not_hold_up_small_ones() -> None:
    """Fifty 4-megapixel requests wait, most of them overdue: a 64² one waits for the step that runs, no more."""
    flood = [Simulated(LARGE, 0.0, KLEIN.alone(LARGE)) for _ in range(50)]
    tiny = [Simulated(Size(64, 64), 0.9 * i, KLEIN.alone(Size(64, 64))) for i in range(1, 50)]
    ours([*flood, *tiny], KLEIN)
    assert max(one.latency for one in flood) > STRETCH[STANDARD] * flood[0].alone  # they were overdue
    assert max(one.latency for one in tiny) < 3 * KLEIN.step_seconds([LARGE])


@pytest.mark.parametrize("load", [1.2, 4.0])
def test_with_deadlines_a_third_more_is_done_in_time_than_first_come_first_served(load: float) -> None:
    """More requests come than can be served, each with a deadline of five lone times."""
    mine, theirs = (goodput(serve, KLEIN_MIX, load, 5.0, KLEIN, 2000) for serve in (ours, first_come_with_deadlines))
    assert mine > 1.3 * theirs


def test_what_is_admitted_at_four_times_capacity_is_in_time() -> None:
    """Nine in ten of the requests that are let in with a deadline meet it, whatever their size."""
    arrivals = poisson(KLEIN_MIX, 4.0, 2000, KLEIN, seed=1)
    for one in arrivals:
        one.stretch = 5.0
    ours(arrivals, KLEIN)
    admitted = [one for one in arrivals if one.failed is None or one.failed.reason == "DEADLINE_PASSED"]
    assert len(admitted) > 200
    assert sum(one.is_in_time for one in admitted) >= 0.9 * len(admitted)


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.0), (1.3, 0.3), (1.6, 0.4)], ids=["as predicted", "1.3", "1.6"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_deadlines_are_met_among_four_times_as_many_requests_as_are_served(
    mean: float, spread: float, seed: int
) -> None:
    """Every third has six seconds; the machine is slower than predicted, by another factor every second or so."""
    random, simulation = Random(seed), Simulation(MINI)
    until, factor = 0.0, 1.0

    def slower() -> float:
        nonlocal until, factor
        if simulation.clock.now >= until:
            until = simulation.clock.now + random.expovariate(1.0)
            factor = mean * math.exp(random.gauss(0, spread))
        return factor * math.exp(random.gauss(0, spread / 2))

    simulation.engine.slower = slower
    arrivals = poisson(MINI_MIX, 4.0, 1200, MINI, seed)
    for one in arrivals[::3]:
        one.stretch = 6.0 / one.alone
    simulation.run(arrivals)
    failed = [one.failed.reason for one in arrivals if one.failed is not None]
    admitted = [one for one in arrivals[::3] if one.failed is None or one.failed.reason == "DEADLINE_PASSED"]
    assert failed.count("DEADLINE_UNREACHABLE") > 200
    assert len(admitted) > 30
    assert sum(one.is_in_time for one in admitted) >= (0.9 if spread else 0.98) * len(admitted)


def test_small_jobs_are_packed_to_the_budget_and_no_further() -> None:
    """The first goes whatever its size; others join while they fit, and a large one does not keep a small one out."""
    jobs = [standing(tokens=tokens, remaining=tokens) for tokens in (100, 300, 500, 50)]
    assert pick(jobs, 0.0, 450, 1.0) == [3, 0, 1]
    assert pick(jobs, 0.0, 10, 1.0) == [3]
    assert pick([standing(tokens=900, remaining=1.0), standing(tokens=300, remaining=2.0)], 0.0, 450, 1.0) == [0]


def test_a_large_job_joins_small_ones_only_where_many_wait() -> None:
    """It would lengthen the small one's step more than it saves, unless the saving helps a queue behind it."""
    small, large = standing(step=0.01, remaining=0.1), standing(step=0.1, remaining=1.0)
    assert pick([small, large], 0.0, 8192, 0.01) == [0]
    assert pick([small, small], 0.0, 8192, 0.01) == [0, 1]
    assert pick([small, large, *[large] * 5], 0.0, 8192, 0.01)[:2] == [0, 1]


def test_nobody_joins_for_whom_a_deadline_would_be_missed() -> None:
    """Of two tenths of a second to spare in each of its four steps half is given away: one joins, which takes a tenth.

    However little is left, who takes less joins; beside a hopeless one, all do.
    """
    other, tight = standing(step=0.1, remaining=0.5), standing(deadline=1.88, remaining=1.0, steps_left=4)
    assert len(pick([other] * 9, 0.0, 8192, 1.0)) == 9
    assert pick([tight, other, other], 0.0, 8192, 1.0) == [0, 1]
    ample = replace(tight, deadline=9.0)
    assert pick([ample, other, other], 0.0, 8192, 1.0) == [1, 2, 0]
    assert pick([replace(tight, deadline=1.01), replace(other, step=0.001)], 0.0, 8192, 1.0) == [0, 1]
    late = replace(tight, deadline=0.5)
    assert pick([late, other, other], 0.0, 8192, 1.0) == [1, 2, 0]


CALLERS = {"": Account(), "a": Account(), "b": Account(), "had a second": Account(1.0)}


def standing(*, caller: str = "", **changed: float | None) -> Standing:
    """A standard job that arrived now, an hour from being due, unless said otherwise."""
    plain = Standing(
        STANDARD, CALLERS[caller], 0.0, None, 0, steps_left=4, tokens=100, step=0.0, remaining=1.0, whole=3600.0
    )
    return replace(plain, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        (standing(remaining=1.0), standing(remaining=2.0), "the shorter of two"),
        (standing(priority=STANDARD, remaining=9.0), standing(priority=BATCH), "priority before length"),
        (standing(priority=INTERACTIVE, remaining=9.0), standing(priority=STANDARD), "interactive first"),
        (
            standing(priority=INTERACTIVE, steps_done=0, remaining=9.0),
            standing(priority=INTERACTIVE, steps_done=1, remaining=1.0),
            "an interactive job that has shown nothing yet",
        ),
        (standing(deadline=1.5, remaining=1.0), standing(priority=INTERACTIVE), "a deadline that is near"),
        (standing(deadline=1.2, remaining=1.0), standing(deadline=1.5, remaining=0.9), "the earlier of two deadlines"),
        (standing(deadline=2.5, remaining=1.0, held_up=0.5), standing(remaining=0.9), "who may be held up for a step"),
        (standing(remaining=9.0), standing(deadline=0.5, remaining=1.0), "anyone before what is too late anyway"),
        (standing(arrived=-120.0, whole=10.0, remaining=9.0), standing(priority=INTERACTIVE), "who is due by its age"),
        (standing(caller="a", remaining=9.0), standing(caller="had a second"), "the caller who has had least"),
        (standing(caller="a", remaining=9.0), standing(caller="b", remaining=2.0), "turns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rules(first: Standing, second: Standing, rule: str) -> None:
    """Each rule, alone, decides who goes first, whoever arrived first."""
    busy = [standing(caller="b", remaining=1.5)] if rule == "turns" else []
    ranked = [i for i in order([*busy, second, first], 0.0) if i >= len(busy)]
    assert ranked == [len(busy) + 1, len(busy)]


def test_what_is_due_by_its_age_goes_first_only_in_its_turn() -> None:
    """Otherwise the shorter one does; a deadline that is near goes before both."""
    aged, short = standing(arrived=-120.0, whole=10.0, remaining=9.0), standing(remaining=1.0)
    pressed = standing(deadline=12.0, remaining=9.0)
    assert order([short, aged], 0.0, aged_first=True) == [1, 0]
    for aged_first, ranked in ((False, [2, 0, 1]), (True, [2, 1, 0])):
        assert order([short, aged, pressed], 0.0, aged_first=aged_first) == ranked


def test_an_interactive_arrival_shows_its_first_step_early() -> None:
    """Its first preview waits for the present step only; as a standard request of the same size it waits longer."""
    early, plain = served(ours, priority=Priority.INTERACTIVE), served(ours)
    firsts = [fmean(one.first_step - one.arrived for one in each if one.first_step) for each in (early, plain)]
    assert firsts[0] < 0.7 * firsts[1]


def test_batch_work_does_not_delay_others_and_is_not_starved() -> None:
    """A tenth of batch requests leaves the others' mean as it was without them, within a tenth, and all finish."""
    arrivals = poisson(KLEIN_MIX, 0.8, 3000, KLEIN, 1)
    for one in arrivals[::10]:
        one.priority = Priority.BATCH
    without = [Simulated(one.size, one.arrived, one.alone) for one in arrivals if one.priority is Priority.STANDARD]
    ours(arrivals, KLEIN)
    ours(without, KLEIN)
    with_batch = fmean(one.latency for one in arrivals if one.priority is Priority.STANDARD)
    assert with_batch < 1.1 * fmean(one.latency for one in without)
    assert all(one.finished is not None for one in arrivals)


@pytest.mark.parametrize("step_tokens_max", [1, 8192], ids=["one by one", "shared"])
@pytest.mark.parametrize("arrived", [0.05, 0.2, 1.0, 3.0])
def test_beside_two_hundred_of_another_caller_one_request_waits_for_one_turn(
    step_tokens_max: int, arrived: float
) -> None:
    """At most one step begins before its first, and at most one between its steps, overdue as the others may be."""
    simulation, steps = Simulation(replace(KLEIN, step_tokens_max=step_tokens_max)), list[set[str]]()

    def step(renders: Sequence[ScriptedRender]) -> None:
        if simulation.clock.now >= arrived:
            steps.append({render.request.caller for render in renders})

    simulation.engine.failures["step"] = step
    flood = [Simulated(SMALL, 0.0, KLEIN.alone(SMALL), caller="many") for _ in range(200)]
    single = Simulated(SMALL, arrived, KLEIN.alone(SMALL), caller="one")
    simulation.run([*flood, single])
    assert single.finished is not None
    assert sum(one.latency > single.finished for one in flood) > 50
    mine = [number for number, callers in enumerate(steps) if "one" in callers]
    assert len(mine) == 4
    assert max(after - before for before, after in pairwise([-1, *mine])) <= 2
