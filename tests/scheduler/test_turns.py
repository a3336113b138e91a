"""Whose turn it is."""

from kleinserve.scheduler.turns import Ration, Turns


def test_a_caller_that_comes_back_starts_level() -> None:
    """Neither owed for its absence nor charged twice: with what each of those present has been due."""
    turns = Turns()
    first, second = turns.come("a"), turns.come("b")
    turns.serve(first, 5.0)
    turns.serve(second, 3.0)
    assert (first.served, second.served) == (5.0, 3.0)
    assert turns.come("c").served == 4.0
    turns.go("b")
    assert turns.come("b").served == 4.0


def test_who_stays_is_not_passed_by_those_who_come_and_go() -> None:
    """One who always has a job has its share beside eight who have one each and come back at once."""
    turns, had = Turns(), 0
    accounts = {name: turns.come(name) for name in ("stays", *"abcdefgh")}
    for _ in range(900):
        name = min(accounts, key=lambda name: accounts[name].served)
        turns.serve(accounts[name], 1.0)
        had += name == "stays"
        if name != "stays":
            turns.go(name)
            accounts[name] = turns.come(name)
    assert 80 <= had <= 120


def test_an_account_lasts_as_long_as_its_caller_s_jobs() -> None:
    """Two jobs share one; it is closed with the second one's end."""
    turns = Turns()
    account = turns.come("a")
    account.served = 4.0
    assert turns.come("a") is account
    turns.go("a")
    assert turns.come("a") is account
    turns.go("a")
    turns.go("a")
    assert turns.come("a") is not account


def test_what_is_due_by_its_age_has_its_share() -> None:
    """While both want the thread, it has three quarters of the time, in turns of one step."""
    ration, had = Ration(0.75), {True: 0.0, False: 0.0}
    for _ in range(1000):
        is_aged = ration.aged_first
        seconds = 0.9 if is_aged else 0.1
        ration.spend(seconds, is_aged=is_aged)
        had[is_aged] += seconds
    assert 0.7 < had[True] / sum(had.values()) < 0.8


def test_after_an_aged_step_it_is_the_others_turn() -> None:
    """However long only aged ones were there: whoever comes then waits for one step."""
    ration = Ration()
    for _ in range(100):
        ration.spend(1.0, is_aged=True)
        assert not ration.aged_first
    ration.spend(1.0, is_aged=False)
    assert ration.aged_first


def test_a_short_aged_piece_does_not_pay_for_a_long_one() -> None:
    """Also not one that took no time at all: the others still have their share to come."""
    ration = Ration()
    ration.spend(1.0, is_aged=True)
    ration.spend(0.0, is_aged=True)
    ration.spend(0.9, is_aged=False)
    assert not ration.aged_first
    ration.spend(0.1, is_aged=False)
    assert ration.aged_first
