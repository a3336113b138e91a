"""Noise, places and steps of rows, by both networks (engine/{network,eager,denoise}.py); parity: test_parity.py."""

import copy
from typing import Any

import pytest
import torch
from kleinserve.core import Size
from kleinserve.engine import denoise, eager, network
from kleinserve.engine.denoise import Denoiser, Row, image_positions, noise, text_positions
from kleinserve.engine.vae import finished
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.engine.checkpoints import random_transformer
from tests.engine.counted import Counted

CPU = torch.device("cpu")
WIDTH = 64  # of the transformer: 4 heads of 16
CHANNELS = 32
SMALL = Size(64, 64)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Denoiser(random_transformer(guidance_embeds=False).eval())


def row(size: Size = SMALL, *, seed: int = 0, steps: int = 4) -> Row:
    context = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))
    sigmas = tuple(1 - i / steps for i in range(steps + 1))
    return Row(size, noise(size, CHANNELS, seed), context[:0], (), (context,), sigmas, 1.0)


def test_noise_is_drawn_in_the_stock_latent_s_shape() -> None:
    """Token h × columns + w is what `torch.randn` gives at [0, :, h, w] for that seed, and no other seed gives it."""
    drawn = torch.randn(1, CHANNELS, 4, 6, generator=torch.Generator().manual_seed(7))
    tokens = noise(Size(96, 64), CHANNELS, 7)
    assert (tokens.shape, tokens.dtype) == ((24, CHANNELS), torch.float32)
    assert torch.equal(tokens[1 * 6 + 2], drawn[0, :, 1, 2])
    assert not torch.equal(tokens, noise(Size(96, 64), CHANNELS, 8))
    assert torch.equal(tokens, noise(Size(96, 64), CHANNELS, 7))


def test_the_largest_seed_draws() -> None:
    """2^64 − 1 is a seed like any other."""
    assert noise(Size(64, 64), CHANNELS, 2**64 - 1).isfinite().all()


def test_places_are_time_row_and_column() -> None:
    """A reference lies at its own time, text along its own axis."""
    assert image_positions(10, Size(48, 32), CPU).tolist() == [
        [10, 0, 0, 0], [10, 0, 1, 0], [10, 0, 2, 0], [10, 1, 0, 0], [10, 1, 1, 0], [10, 1, 2, 0],
    ]  # fmt: skip
    assert text_positions(3, CPU).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


def test_a_step_moves_each_row_by_its_own_sigmas(denoiser: Denoiser) -> None:
    """The estimate lies at sigma 0 on the line through old and new latents; after the last step they are equal."""
    rows = [row(steps=2), row(Size(96, 64), seed=1, steps=3)]
    for _ in range(2):
        before = [each.latents for each in rows]
        denoiser.step(rows)
        for each, old in zip(rows, before, strict=True):
            sigma, following = each.sigmas[each.step - 1], each.sigmas[each.step]
            assert each.estimate is not None
            expected = each.estimate + (old - each.estimate) * following / sigma
            torch.testing.assert_close(each.latents, expected, rtol=1e-4, atol=1e-5)
    assert [each.is_done for each in rows] == [True, False]
    assert torch.equal(rows[0].latents, rows[0].estimate)


def test_a_step_that_fails_moves_no_row(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the device says so late; the same step again then gives what it would have given."""
    rows, untouched = [row(), row(seed=1)], [row(), row(seed=1)]

    def late(device: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(denoise.memory, "finish", late)
        with pytest.raises(torch.OutOfMemoryError):
            denoiser.step(rows)
    assert [(each.step, each.estimate) for each in rows] == [(0, None), (0, None)]
    denoiser.step(rows)
    denoiser.step(untouched)
    for each, other in zip(rows, untouched, strict=True):
        assert torch.equal(each.latents, other.latents)


def test_fewer_calls_compute_the_same(denoiser: Denoiser) -> None:
    """The network for a CPU moves rows as the stock blocks do: alone, together, at one noise level and at several."""
    stock = Denoiser(denoiser.transformer, is_compiled=True)
    assert (type(denoiser._network), type(stock._network)) == (eager.EagerNetwork, network.StockNetwork)
    sides = []
    for each in (denoiser, stock):
        rows = [row(), row(Size(96, 64), seed=1), row(seed=2), row(Size(64, 128), seed=3, steps=3)]
        for count in (1, 4, 3, 4):
            each.step([one for one in rows[:count] if not one.is_done])
        sides.append(rows)
    for one, two in zip(*sides, strict=True):
        torch.testing.assert_close(one.latents, two.latents, rtol=1e-5, atol=1e-5)


def test_a_step_without_the_interpreter_computes_the_same_to_the_bit(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchScript makes the calls that its Python makes: alone, together, at one noise level and at several."""
    sides = []
    for function in (eager.scripted(eager.run), eager.run):
        monkeypatch.setattr(denoiser._network, "_run", function)
        rows = [row(), row(Size(96, 64), seed=1), row(seed=2), row(Size(64, 128), seed=3, steps=3)]
        for count in (1, 4, 3, 4):
            denoiser.step([one for one in rows[:count] if not one.is_done])
        sides.append(rows)
    for one, two in zip(*sides, strict=True):
        assert torch.equal(one.latents, two.latents)


def test_a_step_leaves_the_interpreter_to_others(denoiser: Denoiser) -> None:
    """On a CPU: the first one of rows that have begun calls torch from Python a few times for each, the next never."""
    rows, calls = [row(), row(Size(96, 64), seed=1, steps=3), row(seed=2)], []
    for one in rows:
        finished(denoiser.begin(one))
    for _ in range(2):
        with Counted() as counted:
            denoiser.step(rows)
        calls.append(counted.calls)
    assert calls[0] < 10 * len(rows)
    assert calls[1] == 0


def test_what_a_set_of_rows_needs_is_made_once(denoiser: Denoiser) -> None:
    """It is kept while the set stays, made anew for another, and let go when one of them is done."""
    rows = [row(), row(seed=1, steps=3)]
    denoiser.step(rows)
    first = denoiser._pass
    denoiser.step(rows)
    assert first is denoiser._pass is not None
    denoiser.step(rows[:1])
    assert denoiser._pass is not None
    assert denoiser._pass is not first
    denoiser.step(rows)
    assert denoiser._pass is None


def test_noise_levels_far_ahead_are_made_when_they_come(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row of very many steps a few are held at a time; the pictures are the same to the bit."""
    rows = [row(steps=5), row(steps=5)]
    for one, ahead in zip(rows, (64, 2), strict=True):
        monkeypatch.setattr(denoise, "_LEVELS_AHEAD", ahead)
        denoiser._level.cache_clear()
        finished(denoiser.begin(one))
        assert len(one.levels) == min(5, ahead)
        while not one.is_done:
            denoiser.step([one])
        assert len(one.levels) == 0
    assert torch.equal(rows[0].latents, rows[1].latents)


def test_a_copied_row_goes_its_own_way(denoiser: Denoiser) -> None:
    """Latents are replaced, never written into: who holds the old ones keeps them."""
    one = row()
    held, kept = one.latents, copy.deepcopy(one.latents)
    denoiser.step([one])
    assert torch.equal(held, kept)


def multiplied(query: Tensor, key: Tensor, value: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """Attention of one sequence by products, which torch's counter counts."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    weights = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ value).transpose(0, 1)


@pytest.mark.parametrize("size", [SMALL, Size(256, 256)])
def test_predicted_work_is_what_a_step_computes(
    denoiser: Denoiser, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GFLOP by the blocks' weights and the tokens, within a fifth of all that torch counts in a step."""
    monkeypatch.setattr(denoiser._network, "_run", eager.run)
    monkeypatch.setattr(eager, "attend_each", multiplied)
    one = row(size)
    with FlopCounterMode(display=False) as counter:
        denoiser.step([one])
    assert denoiser.work(one.tokens) * 1e9 == pytest.approx(counter.get_total_flops(), rel=0.2)
