"""Whether deadlines can be met, by numbers."""

from kleinserve.scheduler.admission import SAFETY, Claim, Safety, lateness, spend, wait
from kleinserve.scheduler.cost import Share
from kleinserve.scheduler.policy import STANDARD, Standing
from kleinserve.scheduler.turns import Account

ACCOUNT = Account()


def claim(remaining: float, deadline: float | None = None) -> Claim:
    """A job that takes `remaining` seconds from the others too, three quarters of it in steps."""
    seen = Standing(STANDARD, ACCOUNT, 0.0, deadline, 0, 4, 100, 0.0, remaining, remaining)
    return Claim(seen, Share(0.75 * remaining, 0.25 * remaining))


def test_threads_that_overlap_cost_the_longer_of_the_two() -> None:
    """Side by side the larger sum counts, one after the other both."""
    shares = [Share(3.0, 1.0), Share(1.0, 2.0)]
    assert spend(shares, is_overlapping=True) == 4.0
    assert spend(shares, is_overlapping=False) == 7.0


def test_only_those_before_it_make_a_job_wait() -> None:
    """A short job waits for the shorter one, not for the longer one."""
    jobs = [claim(1.0), claim(5.0)]
    assert wait(jobs, claim(2.0).standing, 0.0, is_overlapping=False) == 1.0


def test_a_deadline_that_the_queue_leaves_room_for_is_met() -> None:
    """Jobs without a deadline that are due later give way."""
    assert lateness([claim(50.0)], claim(1.0, deadline=2.0), 0.0, is_overlapping=False) == 0.0


def test_a_deadline_behind_earlier_ones_is_late() -> None:
    """Ten seconds of work are due before it, and it says by how much it would be late."""
    others = [claim(2.0, deadline=20.0) for _ in range(5)]
    assert lateness(others, claim(2.0, deadline=21.0), 0.0, is_overlapping=False) == 0.0
    assert lateness(others * 2, claim(2.0, deadline=21.0), 0.0, is_overlapping=False) > 5.0


def test_a_newcomer_may_not_break_another_s_deadline() -> None:
    """One that would itself be early enough is refused where an admitted one would become late."""
    admitted = claim(4.0, deadline=8.0)
    assert lateness([], admitted, 0.0, is_overlapping=False) == 0.0
    assert lateness([admitted], claim(1.5, deadline=5.0), 0.0, is_overlapping=False) > 0.0


def test_work_under_way_is_waited_for() -> None:
    """A decode that cannot be interrupted comes first, though its job is due later."""
    held = Claim(claim(1.0).standing, Share(0.0, 0.0), held=2.0)
    assert lateness([held], claim(1.0, deadline=4.0), 0.0, is_overlapping=False) > 0.0
    assert lateness([held], claim(1.0, deadline=5.0), 0.0, is_overlapping=False) == 0.0


def test_what_is_late_without_it_does_not_keep_a_newcomer_out() -> None:
    """A deadline that is lost anyway is nobody else's fault."""
    lost = claim(9.0, deadline=5.0)
    assert lateness([lost], claim(1.0, deadline=4.0), 0.0, is_overlapping=False) == 0.0


def test_the_safety_follows_what_is_missed() -> None:
    """A run of misses makes promises more careful, a long run of met deadlines less so, each within bounds."""
    safety = Safety()
    for _ in range(5):
        safety.observe(is_met=False)
    assert safety.factor > SAFETY + 0.4
    for _ in range(10_000):
        safety.observe(is_met=True)
    assert 1.0 < safety.factor < SAFETY
    for _ in range(10_000):
        safety.observe(is_met=False)
    assert safety.factor == 4.0


def test_a_safety_rests_where_one_in_twenty_is_missed() -> None:
    """Nineteen met deadlines make good for one that is missed."""
    safety = Safety()
    for i in range(200):
        safety.observe(is_met=i % 20 != 0)
    assert abs(safety.factor - SAFETY) < 1e-9
