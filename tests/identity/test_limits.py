"""identity/limits.py: what callers may take, and what comes back, by a clock of its own."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kleinserve.core import ANONYMOUS, Caller
from kleinserve.errors import QuotaExceeded
from kleinserve.identity.limits import GRAINS, MINUTE_NANOSECONDS, Grant, Quota

WEB = Caller("web", requests_max=3, megapixels_per_minute=4)
SECOND = 1_000_000_000


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 10**15

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quota(clock: Clock) -> Quota:
    return Quota(clock)


def admit(quota: Quota, caller: Caller, megapixels: int) -> Grant:
    """A request's slot and its megapixels, or neither."""
    grant = quota.admit(caller)
    try:
        if megapixels:
            quota.charge(grant, caller, megapixels)
    except QuotaExceeded:
        grant.release(ran=False, by_server=False)
        raise
    return grant


def refused(quota: Quota, caller: Caller, megapixels: int) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as error:
        admit(quota, caller, megapixels)
    return error.value


def test_requests(quota: Quota) -> None:
    """The request after requests_max is refused, and fits when one has ended, however it ended; readers count too."""
    caller = replace(WEB, megapixels_per_minute=None)
    grants = [admit(quota, caller, megapixels) for megapixels in (4, 4, 0)]
    error = refused(quota, caller, 0)
    assert (error.caller, error.limit, error.value, error.retry_seconds) == ("web", "requests_max", 3, 1.0)
    grants[0].release(ran=True, by_server=False)
    admit(quota, caller, 4)
    assert refused(quota, caller, 4).limit == "requests_max"


def test_release_once(quota: Quota) -> None:
    """A second release of the same grant frees no other request's slot and brings no megapixels."""
    grants = [admit(quota, WEB, 1) for _ in range(3)]
    for _ in range(3):
        grants[0].release(ran=False, by_server=False)
    admit(quota, WEB, 2)
    assert refused(quota, WEB, 0).limit == "requests_max"


def test_bucket(quota: Quota, clock: Clock) -> None:
    """A full bucket holds one minute; the refusal says to the millisecond when the next request fits."""
    admit(quota, WEB, 3)
    admit(quota, WEB, 1)
    error = refused(quota, WEB, 1)
    assert (error.limit, error.value, error.retry_seconds) == ("megapixels_per_minute", 4, 15.0)
    clock.now += 15 * SECOND - 1
    assert refused(quota, WEB, 1).retry_seconds == 0.001
    clock.now += 1
    admit(quota, WEB, 1)


def test_refused_takes_nothing(quota: Quota) -> None:
    """A refused request holds neither a slot nor megapixels."""
    admit(quota, WEB, 3)
    for _ in range(10):
        refused(quota, WEB, 2)
    admit(quota, WEB, 1)
    admit(quota, WEB, 0)


@pytest.mark.parametrize(
    ("ran", "by_server", "comes_back"),
    [(True, False, False), (True, True, True), (False, False, True), (False, True, True)],
)
def test_comes_back(quota: Quota, ran: bool, by_server: bool, comes_back: bool) -> None:
    """Megapixels come back if no step ran, or if the server ended the request, and only then."""
    admit(quota, WEB, 4).release(ran=ran, by_server=by_server)
    if comes_back:
        admit(quota, WEB, 4)
    else:
        assert refused(quota, WEB, 4).retry_seconds == 60.0


def test_never_fits(quota: Quota) -> None:
    """A request larger than the whole bucket is refused with a delay of an hour, and says that it never fits."""
    error = refused(quota, WEB, 5)
    assert error.retry_seconds == 3600.0
    assert error.message == "caller web is at its limit megapixels_per_minute = 4, and 5 megapixels never fit"


def test_reader_of_an_empty_bucket(quota: Quota) -> None:
    """A reader of what was admitted before needs no megapixels, even where a lowered limit left the bucket in debt."""
    admit(quota, WEB, 4)
    admit(quota, replace(WEB, megapixels_per_minute=1), 0)


def test_callers_apart(quota: Quota) -> None:
    """One caller at its limit leaves another's bucket and slots alone."""
    admit(quota, WEB, 4)
    admit(quota, replace(WEB, name="ops"), 4)
    for _ in range(1000):
        admit(quota, ANONYMOUS, 4)


def test_new_limits(quota: Quota, clock: Clock) -> None:
    """After a reload the next request is judged by the new limit, and what was taken before still counts."""
    admit(quota, WEB, 4)
    assert refused(quota, replace(WEB, megapixels_per_minute=2), 1).retry_seconds == 90.0
    clock.now += 90 * SECOND
    admit(quota, replace(WEB, megapixels_per_minute=2), 1)
    admit(quota, replace(WEB, megapixels_per_minute=8), 6)
    assert refused(quota, replace(WEB, requests_max=2), 0).limit == "requests_max"


def test_new_refill(quota: Quota, clock: Clock) -> None:
    """From the first request that a raised limit judges, refused or not, the bucket refills as the limit says."""
    admit(quota, WEB, 4)
    raised = replace(WEB, megapixels_per_minute=8)
    assert refused(quota, raised, 8).retry_seconds == 30.0
    clock.now += 30 * SECOND
    admit(quota, raised, 8)


def test_credit_is_not_saved(quota: Quota, clock: Clock) -> None:
    """Requests that waited for minutes and never ran bring back no more than the minutes have not repaid already."""
    caller = replace(WEB, requests_max=None)
    waiting = []
    for _ in range(5):
        waiting.append(admit(quota, caller, 4))
        clock.now += MINUTE_NANOSECONDS
    admit(quota, caller, 4)
    for grant in waiting:
        grant.release(ran=False, by_server=False)
    assert refused(quota, caller, 1).retry_seconds == 15.0


ADMIT = st.tuples(st.just("admit"), st.integers(1, 5))
END = st.tuples(st.sampled_from(["keep", "return"]), st.integers(0, 9))
WAIT = st.tuples(
    st.just("wait"), st.integers(0, 25 * SECOND) | st.integers(0, 25).map(lambda seconds: seconds * SECOND)
)
LIMIT = st.tuples(st.just("limit"), st.integers(2, 9))
STEPS = st.lists(st.one_of(ADMIT, ADMIT, END, END, WAIT, LIMIT), min_size=8, max_size=60)


class Model:
    """The rule itself, told slowly: the whole history is played again for every question."""

    def __init__(self) -> None:
        self.history: list[list[int]] = []  # when, grains, the limit from then on

    def debt(self, now: int) -> int:
        debt, since, limit = 0, 0, 0
        for when, grains, next_limit in [*self.history, [now, 0, 0]]:
            debt = max(0, debt - limit * (when - since)) + grains
            since, limit = when, next_limit
        return debt


@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_as_if_never(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, a request fits exactly when it would if what came back had never been taken."""
    clock, model = Clock(), Model()
    quota, caller = Quota(clock), Caller("web", megapixels_per_minute=4)
    open_grants: list[tuple[Grant, list[int]]] = []
    for what, value in steps:
        if what == "wait":
            clock.now += value
        elif what == "limit":
            caller = replace(caller, megapixels_per_minute=value)
        elif what in ("keep", "return") and open_grants:
            grant, entry = open_grants.pop(value % len(open_grants))
            grant.release(ran=what == "keep", by_server=False)
            entry[1] = entry[1] if what == "keep" else 0
        elif what == "admit":
            limit = caller.megapixels_per_minute
            assert limit is not None
            if value <= limit:  # else it never fits, and the new limit has not been used yet
                model.history.append([clock.now, 0, limit])
            if value <= limit and model.debt(clock.now) + value * GRAINS <= limit * GRAINS:
                entry = [clock.now, value * GRAINS, limit]
                open_grants.append((admit(quota, caller, value), entry))
                model.history.append(entry)
            else:
                error = refused(quota, caller, value)
                if value <= limit:
                    wait = round(error.retry_seconds * 1000) * 1_000_000
                    assert model.debt(clock.now + wait) <= (limit - value) * GRAINS
                    assert model.debt(clock.now + wait - 1_000_000) > (limit - value) * GRAINS


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 5 * SECOND), st.integers(1, 4)), max_size=100))
def test_rate(limit: int, arrivals: list[tuple[int, int]]) -> None:
    """Over any span, what is admitted is at most the bucket and its refill: to the megapixel, without rounding."""
    clock = Clock()
    quota, caller, admitted = Quota(clock), Caller("web", megapixels_per_minute=limit), []
    for wait, megapixels in arrivals:
        clock.now += wait
        try:
            admit(quota, caller, megapixels)
        except QuotaExceeded:
            continue
        admitted.append((clock.now, megapixels))
        for i, (begin, _) in enumerate(admitted):
            span = sum(megapixels for _, megapixels in admitted[i:])
            assert span * GRAINS <= limit * GRAINS + limit * (clock.now - begin)
