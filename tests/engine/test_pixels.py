"""From the decoder's values to bytes, and from bytes to what the encoder takes."""

import numpy as np
import pytest
import torch
from kleinserve.core import Pixels, Size
from kleinserve.engine.pixels import Fetch, quantise, to_tensor, unit


def plain(*channels: float) -> torch.Tensor:
    """[1, channels, 1, 1] of values in 0..1, as a decoder gives them."""
    return torch.tensor(channels)[None, :, None, None] * 2 - 1


@pytest.mark.parametrize("channels", [3, 4])
def test_bytes_come_back(channels: int) -> None:
    """Every level survives the way to the model's range and back."""
    levels = np.arange(256 * channels, dtype=np.uint8).reshape(16, 16, channels)
    levels[..., 3:] = 255
    tensor = to_tensor(Pixels(Size(16, 16), channels, levels.tobytes()))
    assert (tensor.shape, tensor.dtype) == ((channels, 16, 16), torch.float32)
    assert np.array_equal(quantise(tensor[None], is_cut_out=channels == 4)[0].numpy(), levels)


def test_rows_and_columns_keep_their_places() -> None:
    """A picture wider than high has its height first in a tensor, its width first in a size."""
    levels = np.zeros((2, 3, 3), np.uint8)
    levels[0, 2] = 255
    tensor = to_tensor(Pixels(Size(3, 2), 3, levels.tobytes()))
    assert tensor.shape == (3, 2, 3)
    assert tensor[:, 0, 2].tolist() == [1.0, 1.0, 1.0]
    assert unit(tensor[None])[0, 0].tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("value", "level"),
    [(-3.0, 0), (0.0, 0), (64.5 / 255, 64), (127.5 / 255, 128), (1.0, 255), (1.7, 255)],
)
def test_levels_are_rounded_half_to_even_and_clamped(value: float, level: int) -> None:
    """As numpy's round does in the stock image processor."""
    assert quantise(plain(value, value, value), is_cut_out=False).flatten().tolist() == [level] * 3


@pytest.mark.parametrize(
    ("values", "is_cut_out", "levels"),
    [
        ((1.0, 0.0, 0.0, 1.0), False, [255, 0, 0]),
        ((1.0, 0.0, 0.0, 0.0), False, [255, 255, 255]),
        ((1.0, 0.0, 0.0, 0.6), False, [255, 102, 102]),
        ((1.0, 0.0, 0.0, 0.6), True, [255, 0, 0, 153]),
        ((1.0, 0.5, 0.2, 0.0), True, [0, 0, 0, 0]),
        ((1.0, 0.0, 0.0), True, [255, 0, 0]),
    ],
)
def test_alpha_is_kept_for_a_cut_out_and_else_shown_on_white(
    values: tuple[float, ...], is_cut_out: bool, levels: list[int]
) -> None:
    """On white before it is rounded; colour under alpha 0 is 0; without alpha there is none to keep."""
    assert quantise(plain(*values), is_cut_out=is_cut_out).flatten().tolist() == levels


def test_what_is_fetched_is_there() -> None:
    """On a CPU at once and without a copy."""
    tensor = torch.arange(6.0).reshape(2, 3)
    array = Fetch(tensor).array()
    assert np.array_equal(array, tensor.numpy())
    assert np.shares_memory(array, tensor.numpy())
