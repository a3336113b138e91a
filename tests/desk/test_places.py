"""Places in the queue are bounded in number and bytes."""

import pytest
from kleinserve.desk.places import Places
from kleinserve.errors import QueueFull


def test_the_number_is_bounded_and_says_when_to_come_back() -> None:
    """The third of two is refused with the seconds until what is there is done, at least one."""
    places = Places(2, 1000, lambda: 7.5)
    first, _ = places.take(10), places.take(10)
    with pytest.raises(QueueFull, match="2 requests are waiting, the limit is 2") as caught:
        places.take(10)
    assert caught.value.retry_seconds == 7.5
    first.leave()
    places.take(10)


def test_bytes_are_bounded_unless_it_is_alone() -> None:
    """A request that holds more than all may hold passes alone, and nobody beside it."""
    places = Places(10, 100, lambda: 0.0)
    large = places.take(500)
    large.grow(500)
    with pytest.raises(QueueFull, match="hold 1000 bytes, 1 more would pass the limit 100") as caught:
        places.take(1)
    assert caught.value.retry_seconds == 1.0
    large.leave()
    assert (places.requests, places.bytes) == (0, 0)


def test_what_is_decoded_counts() -> None:
    """References that grow past the bound are refused; what they held so far is given back when the place is left."""
    places = Places(10, 100, lambda: 0.0)
    places.take(60)
    place = places.take(20)
    with pytest.raises(QueueFull):
        place.grow(30)
    place.grow(20)
    place.leave()
    place.leave()
    assert (places.requests, places.bytes) == (1, 60)
