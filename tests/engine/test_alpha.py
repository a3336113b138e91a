"""Cut-outs from pictures whose true alpha is known."""

import numpy as np
import pytest
from kleinserve.engine import alpha


def subject() -> tuple[alpha.Picture, alpha.Picture]:
    """A disc with a soft edge: its colour [64, 64, 3] and its alpha [64, 64]."""
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 31.5, columns - 31.5)
    opacity = np.clip(20.5 - distance, 0, 1).astype(np.float32)
    return np.broadcast_to(np.float32([0.8, 0.2, 0.1]), (64, 64, 3)), opacity


def over(ground: float) -> alpha.Picture:
    colour, opacity = subject()
    return np.asarray(colour * opacity[..., None] + ground * (1 - opacity[..., None]), dtype=np.float32)


def test_difference_recovers_alpha_and_colour() -> None:
    """The same subject on white and on black gives back its alpha, soft edge included, and its straight colour."""
    cut = alpha.difference(over(1.0), over(0.0))
    colour, opacity = subject()
    assert cut is not None
    assert np.abs(cut[..., 3] - opacity).max() < 1e-5
    assert np.abs(cut[..., :3] - colour)[opacity > 0.1].max() < 1e-3


@pytest.mark.parametrize("shift", [6, 20])
def test_difference_refuses_drift(shift: int) -> None:
    """A subject that moved between the two pictures is not aligned."""
    assert alpha.difference(over(1.0), np.roll(over(0.0), shift, axis=1)) is None


def test_difference_refuses_a_full_picture() -> None:
    """Two equal pictures have no background."""
    assert alpha.difference(over(1.0), over(1.0)) is None


def test_key_cuts_out_a_plain_background() -> None:
    """A subject on a plain ground is cut out by the ground's colour."""
    cut = alpha.key(over(1.0))
    _, opacity = subject()
    assert cut is not None
    assert ((cut[..., 3] > 0.5) == (opacity > 0.5)).mean() > 0.99


def test_key_refuses_a_busy_border() -> None:
    """A border of many colours is no background."""
    assert alpha.key(np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)) is None


def test_quantised_colour_is_zero_where_alpha_is() -> None:
    """Invisible pixels have no colour."""
    picture = np.ones((2, 2, 4), np.float32)
    picture[0, 0, 3] = 0
    data = alpha.quantise(picture).tobytes()
    assert data[:4] == b"\0\0\0\0"
    assert data[4:8] == b"\xff\xff\xff\xff"
