"""References become tokens once, and are kept by their content."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from kleinserve.core import Reference
from kleinserve.engine.references import ReferenceEncoder
from kleinserve.engine.vae import Vae, finished
from torch import Tensor

from tests.engine.checkpoints import random_vae
from tests.engine.drawing import reference

WIDTH = 24  # channels of the transformer
ONE, TWO = reference(64, 64, 1, 3), reference(96, 64, 2, 3)


@dataclass
class Encoder:
    """A reference encoder over a small random VAE; `lent` counts how often the VAE was borrowed."""

    cache_bytes_max: int = 1 << 20
    lent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        vae = Vae(random_vae(3).eval(), torch.device("cpu"), 1 << 20)
        self.embedder = torch.nn.Linear(vae.latent_channels, WIDTH, bias=False)
        self.vae = vae
        self.own = ReferenceEncoder(vae, self.embedder, self.cache_bytes_max, self._lend)

    @contextmanager
    def _lend(self) -> Iterator[None]:
        self.lent.append("lent")
        yield

    @torch.inference_mode()
    def encode(self, *references: Reference) -> list[Tensor]:
        return finished(self.own.encode(references))


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def test_each_is_embedded_in_the_order_asked(encoder: Encoder) -> None:
    """A token for each 16 × 16 pixels, of the transformer's width; a reference alone is what it is beside others."""
    two, one = encoder.encode(TWO, ONE)
    assert (two.shape, one.shape) == ((24, WIDTH), (16, WIDTH))
    [alone] = Encoder().encode(ONE)
    assert torch.equal(alone, one)


def test_the_same_content_is_encoded_once(encoder: Encoder) -> None:
    """Found by its digest, with nothing borrowed; known as cached before."""
    first = encoder.encode(ONE, TWO)
    assert encoder.own.is_cached(ONE)
    again = encoder.encode(ONE, TWO)
    assert all(kept is made for kept, made in zip(again, first, strict=True))
    assert len(encoder.lent) == 1
    encoder.encode(ONE, replace(TWO, digest=b"other"))
    assert len(encoder.lent) == 2


def test_what_comes_once_is_not_kept(encoder: Encoder) -> None:
    """Without a digest it takes no room, and is found by nobody."""
    passing = replace(ONE, digest=b"")
    encoder.encode(passing)
    assert not encoder.own.is_cached(passing)


def test_what_is_larger_than_the_cache_is_encoded_all_the_same() -> None:
    """A cache of no bytes keeps nothing; one with room for one keeps the newest."""
    nothing = Encoder(cache_bytes_max=0)
    assert nothing.encode(ONE)[0].shape == (16, WIDTH)
    assert not nothing.own.is_cached(ONE)
    small = Encoder(cache_bytes_max=24 * WIDTH * 4)
    small.encode(ONE, TWO)
    assert (small.own.is_cached(ONE), small.own.is_cached(TWO)) == (False, True)


def test_work_that_is_closed_half_way_keeps_nothing(encoder: Encoder) -> None:
    """And what was borrowed is given back, so the next is as ever."""
    with torch.inference_mode():
        pieces = encoder.own.encode([ONE])
        next(pieces)
        pieces.close()
    assert not encoder.own.is_cached(ONE)
    assert torch.equal(encoder.encode(ONE)[0], Encoder().encode(ONE)[0])
