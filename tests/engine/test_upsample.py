"""The folded upsampling against the stock one."""

import copy

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from diffusers.models.upsampling import Upsample2D
from kleinserve.engine.checkpoint import MINI
from kleinserve.engine.upsample import FoldedUpsample, fold


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4, 4), (5, 7)])
def test_a_folded_upsampling_equals_the_stock_one_to_the_last_border_pixel(width: int, height: int) -> None:
    """The one transposed convolution gives what doubling and convolving give."""
    torch.manual_seed(0)
    stock = Upsample2D(6, use_conv=True, out_channels=5)
    picture = torch.randn(2, 6, height, width)
    with torch.inference_mode():
        torch.testing.assert_close(FoldedUpsample(stock)(picture), stock(picture), atol=1e-5, rtol=1e-5)


def test_every_upsampling_of_mini_is_folded_and_its_pictures_stay_the_same() -> None:
    """The whole decoder draws the same picture after folding, within a fraction of one 8-bit level."""
    stock = AutoencoderKLFlux2.from_pretrained(MINI, subfolder="vae").eval()
    folded = copy.deepcopy(stock)
    fold(folded)
    kinds = [type(u) for block in folded.decoder.up_blocks for u in block.upsamplers or ()]
    assert kinds == [FoldedUpsample] * 3
    torch.manual_seed(0)
    latents = torch.randn(1, 8, 12, 16)
    with torch.inference_mode():
        assert (folded.decode(latents).sample - stock.decode(latents).sample).abs().max() < 0.1 / 127.5
