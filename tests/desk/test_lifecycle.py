"""The server's state goes one way."""

import pytest
from kleinserve.backend.backend import State
from kleinserve.desk.lifecycle import Lifecycle
from kleinserve.errors import Draining, NotReady


def test_it_never_goes_back() -> None:
    """Draining is not ready again, dead is not draining again; each change is told once."""
    lifecycle, told = Lifecycle(), []
    lifecycle.watch(told.append)
    with pytest.raises(NotReady):
        lifecycle.check()
    lifecycle.become(State.READY)
    lifecycle.check()
    for state in (State.DRAINING, State.READY, State.DEAD, State.DRAINING):
        lifecycle.become(state)
    with pytest.raises(Draining):
        lifecycle.check()
    assert told == [State.READY, State.DRAINING, State.DEAD]
