"""When a call hangs, and when it only seems to."""

from kleinserve.scheduler.watch import Hung, Watch, Watchdog


class Time:
    """A clock, and what the process has computed."""

    def __init__(self) -> None:
        self.now = self.processed = 0.0


def watched(watch: Watch, *, computes: bool = False) -> tuple[Watchdog, Time, list[Hung]]:
    """A watchdog whose floor is a minute, on a clock of the test's."""
    time, hung = Time(), list[Hung]()
    dog = Watchdog(
        [watch], 60.0, hung.append, computes=computes, clock=lambda: time.now, processed=lambda: time.processed
    )
    return dog, time, hung


def seconds_until_hung(dog: Watchdog, time: Time, *, tick: float = 1.0, used: float = 1.0, ticks: int = 2000) -> float:
    """Looks every `tick` seconds, of which the process computes a part."""
    started = time.now
    for _ in range(ticks):
        time.now, time.processed = time.now + tick, time.processed + tick * used
        if dog.look():
            break
    return time.now - started


def test_ten_times_what_was_predicted_and_a_minute() -> None:
    """Whichever is longer."""
    watch = Watch("steps")
    dog, time, hung = watched(watch)
    with watch.over(1.0):
        assert 60 <= seconds_until_hung(dog, time) <= 62
    assert "steps" in str(hung[0])
    with watch.over(20.0):
        assert 200 <= seconds_until_hung(dog, time) <= 202


def test_calls_that_end_never_hang() -> None:
    """Whatever their number, and the time between them."""
    watch = Watch("steps")
    dog, time, hung = watched(watch)
    for _ in range(100):
        with watch.over(1.0):
            seconds_until_hung(dog, time, ticks=50)
        seconds_until_hung(dog, time, ticks=100)
    assert hung == []


def test_a_process_that_was_stopped_has_not_hung() -> None:
    """An hour between two looks counts as two seconds."""
    watch = Watch("steps")
    dog, time, hung = watched(watch)
    with watch.over(1.0):
        seconds_until_hung(dog, time, tick=3600.0, ticks=20)
    assert hung == []


def test_a_process_that_is_starved_hardly_counts() -> None:
    """On a tenth of a core a step of the CPU takes ten times as long; where a GPU computes that says nothing."""
    watch = Watch("steps")
    dog, time, _ = watched(watch, computes=True)
    with watch.over(1.0):
        assert seconds_until_hung(dog, time, used=0.1) >= 600
    dog, time, _ = watched(watch)
    with watch.over(1.0):
        assert seconds_until_hung(dog, time, used=0.1) <= 62


def test_a_process_that_sleeps_in_a_call_hangs() -> None:
    """It computes nothing at all: that is not starving."""
    watch = Watch("steps")
    dog, time, _ = watched(watch, computes=True)
    with watch.over(1.0):
        assert seconds_until_hung(dog, time, used=0.0) <= 62
