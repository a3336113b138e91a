"""The policy on a simulated device, beside what other servers do, and its rules one by one."""

from dataclasses import replace
from statistics import fmean

import pytest
from kleinserve.scheduler.cost import Line
from kleinserve.scheduler.policy import BATCH, INTERACTIVE, STANDARD, STRETCH, Standing, order, pick

from tests.scheduler.simulator import (
    Kind,
    Policy,
    Simulated,
    equal_share,
    first_come,
    poisson,
    quantile,
    run,
    same_shape,
    shortest_first,
)

# klein 4B on an H200: seconds of a step's fixed part and of a token, three sizes with their decodes.
LINE = Line(0.0005, 0.0441 / 4608)
SMALL, MIDDLE, LARGE = Kind("512²", 1536, 0.010), Kind("1024²", 4608, 0.035), Kind("2048²", 16896, 0.160)
MIX = {SMALL: 0.6, MIDDLE: 0.3, LARGE: 0.1}
OURS = shortest_first(8192, LINE)


def served(policy: Policy, load: float = 0.8, seed: int = 1, **every: object) -> list[Simulated]:
    """3,000 requests of the mix at this load of one after another, served."""
    arrivals = poisson(MIX, load, 3000, LINE, seed)
    for name, value in every.items():
        for job in arrivals:
            setattr(job, name, value)
    run(arrivals, policy, LINE)
    return arrivals


def latencies(jobs: list[Simulated], kind: Kind) -> list[float]:
    return [job.latency for job in jobs if job.kind is kind]


@pytest.mark.parametrize("other", [first_come, equal_share, same_shape(8)], ids=["first come", "equal", "same shape"])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_halves_the_mean_latency_and_cuts_the_small_ones_tail_to_a_fifth(other: Policy, seed: int) -> None:
    """At 80 % load, against first come first served, equal shares and static batches of one shape."""
    ours, theirs = served(OURS, seed=seed), served(other, seed=seed)
    assert fmean(job.latency for job in ours) < 0.5 * fmean(job.latency for job in theirs)
    assert quantile(latencies(ours, SMALL), 0.99) < 0.2 * quantile(latencies(theirs, SMALL), 0.99)


def test_the_largest_class_is_bounded_by_the_stretch() -> None:
    """No 4-megapixel request takes more than `STRETCH` times its lone time at 80 % load, though small ones overtake."""
    assert max(job.latency / job.alone for job in served(OURS) if job.kind is LARGE) <= STRETCH[STANDARD]


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


PLAIN = Standing(STANDARD, "", 0.0, 0.0, None, steps_done=0, tokens=100, step=0.0, remaining=1.0, whole=3600.0)


def standing(**changed: float | str | None) -> Standing:
    """A standard job that arrived now, an hour from being due, unless said otherwise."""
    return replace(PLAIN, **changed)  # type: ignore[arg-type]


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
        (standing(remaining=9.0), standing(deadline=0.5, remaining=1.0), "anyone before what is too late anyway"),
        (standing(arrived=-120.0, whole=10.0, remaining=9.0), standing(priority=INTERACTIVE), "who is due by its age"),
        (standing(caller="a", remaining=9.0), standing(caller="b", served=1.0), "the caller who has had least"),
        (standing(caller="a", remaining=9.0), standing(caller="b", remaining=2.0), "turns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rules(first: Standing, second: Standing, rule: str) -> None:
    """Each rule, alone, decides who goes first, whoever arrived first."""
    busy = [standing(caller="b", remaining=1.5)] if rule == "turns" else []
    ranked = [i for i in order([*busy, second, first], 0.0) if i >= len(busy)]
    assert ranked == [len(busy) + 1, len(busy)]


def test_an_interactive_arrival_shows_its_first_step_early() -> None:
    """Its first preview waits for the present step only; as a standard request of the same size it waits longer."""
    early, plain = served(OURS, priority=INTERACTIVE), served(OURS)
    firsts = [fmean(job.first_step - job.arrived for job in jobs if job.first_step) for jobs in (early, plain)]
    assert firsts[0] < 0.7 * firsts[1]


def test_batch_work_does_not_delay_others_and_is_not_starved() -> None:
    """A tenth of batch requests leaves the others' mean as it was without them, within a tenth, and all finish."""
    arrivals = poisson(MIX, 0.8, 3000, LINE, 1)
    for job in arrivals[::10]:
        job.priority = BATCH
    without = [Simulated(job.kind, job.arrived, LINE) for job in arrivals if job.priority == STANDARD]
    run(arrivals, OURS, LINE)
    run(without, OURS, LINE)
    with_batch = fmean(job.latency for job in arrivals if job.priority == STANDARD)
    assert with_batch < 1.1 * fmean(job.latency for job in without)
    assert all(job.finished is not None for job in arrivals)


def test_a_caller_with_few_requests_does_not_wait_behind_one_with_many() -> None:
    """One request beside two hundred of another caller finishes among the first."""
    flood = [Simulated(SMALL, 0.0, LINE, caller="many") for _ in range(200)]
    single = Simulated(MIDDLE, 0.0, LINE, caller="one")
    run([*flood, single], OURS, LINE)
    assert sum(job.latency < single.latency for job in flood) < 40
