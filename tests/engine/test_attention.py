"""Packed sequences attend each to itself, in the order in which they lie; the blocks around it: test_parity.py."""

import random
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kleinserve.engine.attention import Packing, attend, varlen
from torch import Tensor

CPU = torch.device("cpu")


def of(*lengths: int) -> Tensor:
    """Where sequences of these lengths end."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def drawn(tokens: int, heads: int = 2, channels: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(1, tokens, heads, channels, generator=generator) for _ in range(3))  # type: ignore[return-value]


def alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stock attention of one sequence [1, T, heads, channels]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def test_a_packing_says_where_tokens_lie() -> None:
    """Two sequences: all text then all images in the stream; each text before its own image in sequence order."""
    packing = Packing.of([2, 1], [3, 2], CPU)
    assert packing.lengths == (5, 3)
    assert packing.order.tolist() == [0, 1, 3, 4, 5, 2, 6, 7]
    assert packing.ends.tolist() == packing.host_ends.tolist() == [0, 5, 8]
    assert packing.ends.dtype is torch.int32


def test_the_inverse_brings_every_token_back() -> None:
    """Whatever the sequences, also without text or image tokens of their own."""
    chance = random.Random(0)
    for _ in range(20):
        count = chance.randint(1, 5)
        packing = Packing.of(*([chance.randint(0, 9) for _ in range(count)] for _ in range(2)), CPU)
        stream = torch.arange(len(packing.order))
        assert torch.equal(stream[packing.order][packing.inverse], stream)


@pytest.mark.parametrize("lengths", [(7,), (4, 4, 4), (3, 5), (5, 5, 2, 2, 5), (1, 1, 9)])
def test_each_sequence_attends_to_itself_alone(lengths: tuple[int, ...]) -> None:
    """Side by side they are what stock attention makes of each."""
    query, key, value = drawn(sum(lengths))
    ends = of(*lengths)
    made = attend(query, key, value, ends, ends)
    for start, stop in pairwise(ends.tolist()):
        own = alone(*(x[:, start:stop] for x in (query, key, value)))
        torch.testing.assert_close(made[:, start:stop], own, rtol=1e-5, atol=1e-6)


def test_what_a_neighbour_holds_does_not_leak() -> None:
    """Other tokens in one sequence leave every bit of the other."""
    query, key, value = drawn(9)
    ends = of(4, 5)
    before = attend(query, key, value, ends, ends)
    for tensor in (query, key, value):
        tensor[:, 4:] += 10
    after = attend(query, key, value, ends, ends)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("lengths", [(7,), (3, 5)])
def test_the_compiler_knows_the_operator(lengths: tuple[int, ...]) -> None:
    """Its schema and its fake are those of what it does, so that compiled blocks may hold it."""
    ends = of(*lengths)
    tests = ("test_schema", "test_faketensor")
    results = torch.library.opcheck(attend, (*drawn(sum(lengths)), ends, ends), test_utils=tests)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_has_no_variable_length_attention(dtype: torch.dtype) -> None:
    """There each sequence attends by itself; on CUDA: tests/gpu/."""
    assert varlen(CPU, dtype, 16) is None
