"""Previews are fitted, and their fit is measured."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kleinserve.config import Config
from kleinserve.core import Size
from kleinserve.engine import checkpoint, preview
from kleinserve.engine.engine import Engine


@pytest.mark.parametrize("is_transparent", [False, True])
def test_preview_resembles_the_picture(is_transparent: bool) -> None:
    """On a picture it has not seen, the preview is within 19 dB of the decoded picture scaled down, on white."""
    engine = Engine(checkpoint.find("mini"), Config(threads=1))
    picture = torch.ones(1, 4, 128, 128)
    picture[:, :3] = torch.tensor([-0.8, -0.6, 0.7])[None, :, None, None]
    if is_transparent:
        picture[:, :3], picture[:, 3] = -1.0, -1.0
    picture[:, :3, 40:90, 30:100] = torch.tensor([0.9, -0.7, -0.8])[None, :, None, None]
    picture[:, 3, 40:90, 30:100] = 1.0
    tokens = engine._vae.encode(picture)[0]
    drawn = preview._on_white(engine._preview.draw(tokens, Size(128, 128))[None].clamp(-1, 1))[:, :3]
    decoded = preview._on_white(engine._vae.decode([tokens], Size(128, 128)).clamp(-1, 1))[:, :3]
    error = ((drawn - F.avg_pool2d(decoded, 8)) / 2).square().mean()
    assert -10 * np.log10(float(error)) > 19
