"""Doubling by nearest neighbour and the convolution after it, as one transposed convolution. Knows no images."""

import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLFlux2
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


class FoldedUpsample(nn.ConvTranspose2d):
    """What an `Upsample2D` computes, with 16 products per input pixel and channel pair instead of 36.

    Doubling repeats each pixel 2 × 2 times, which is a transposed convolution with a kernel of ones; after it the
    3 × 3 convolution makes one of 4 × 4, stride 2. Equal but for the order in which products are added.
    """

    def __init__(self, upsample: Upsample2D):
        conv = upsample.conv
        assert isinstance(conv, nn.Conv2d)
        super().__init__(conv.in_channels, conv.out_channels, 4, 2, 1, dtype=conv.weight.dtype, device="meta")
        flipped = conv.weight.detach().float().flip(2, 3)
        shifted = (F.pad(flipped, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1))
        kernel = sum(shifted, start=flipped.new_zeros(())).to(conv.weight.dtype).transpose(0, 1).contiguous()
        self.weight = nn.Parameter(kernel, requires_grad=False)
        self.bias = conv.bias

    def forward(self, hidden_states: Tensor, output_size: object = None) -> Tensor:
        """[B, C, H, W] -> [B, C', 2H, 2W]."""
        return super().forward(hidden_states)


def fold(vae: AutoencoderKLFlux2) -> None:
    """Replace the decoder's upsamplings, in place, where they are the plain kind."""
    for block in vae.decoder.up_blocks:
        for i, upsample in enumerate(block.upsamplers or ()):
            conv = getattr(upsample, "conv", None)
            is_plain = isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1)
            if is_plain and not upsample.use_conv_transpose and upsample.norm is None and upsample.interpolate:
                block.upsamplers[i] = FoldedUpsample(upsample)
