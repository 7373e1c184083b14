"""Packed attention against a loop over sequences in float64; its groups, dropout, and what CUDA would run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srsplan.kernels.attention import SHORTEST_SHARE, Packing, pack, packed_attention

CPU, META = torch.device("cpu"), torch.device("meta")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def packing(lengths: Sequence[int], device: torch.device = CPU) -> Packing:
    return pack(np.cumsum([0, *lengths]), device)


def one_by_one(joined: Tensor, lengths: Sequence[int], causal: bool = True) -> Tensor:
    """Softmax of a masked product, one sequence after another: [M, 3, H, K] -> [M, H, K]."""
    results = []
    for part in joined.split(list(lengths)):
        query, key, value = part.permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) / math.sqrt(joined.shape[-1])
        future = torch.ones(len(part), len(part)).triu(1).bool() & causal
        results.append((scores.masked_fill(future, -torch.inf).softmax(2) @ value).transpose(0, 1))
    return torch.cat(results)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 2**16), st.booleans())
def test_equal_to_one_sequence_after_another(lengths: list[int], seed: int, causal: bool) -> None:
    joined = torch.randn(sum(lengths), 3, 2, 8, generator=torch.Generator().manual_seed(seed))
    ours, truth = joined.requires_grad_(), joined.detach().double().requires_grad_()
    found, expected = packed_attention(ours, packing(lengths), causal=causal), one_by_one(truth, lengths, causal)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert truth.grad is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(LENGTHS, st.data())
def test_a_token_changes_itself_and_what_follows_in_its_sequence_alone(lengths: list[int], data: st.DataObject) -> None:
    torch.manual_seed(0)
    place = data.draw(st.integers(0, sum(lengths) - 1))
    end = next(end for end in np.cumsum(lengths).tolist() if end > place)
    joined = torch.randn(sum(lengths), 3, 1, 8)
    changed = joined.clone()
    changed[place] += 5
    before, after = (packed_attention(each, packing(lengths)) for each in (joined, changed))
    differing = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
    assert differing == list(range(place, end))


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [7], [40]])
def test_a_first_token_sees_itself_alone(lengths: list[int]) -> None:
    joined = torch.randn(sum(lengths), 3, 2, 8)
    starts = np.cumsum([0, *lengths[:-1]])
    torch.testing.assert_close(packed_attention(joined, packing(lengths))[starts], joined[starts, 2])


@settings(deadline=None)
@example([10, 9])
@given(LENGTHS)
def test_groups_hold_every_token_once_and_little_padding(lengths: list[int]) -> None:
    found = packing(lengths)
    assert found.padded is not None
    assert found.places is not None
    assert found.padded[found.places].tolist() == list(range(sum(lengths)))
    assert len(set(found.places.tolist())) == sum(lengths)
    assert sum(rows for rows, _ in found.groups) == len(lengths)
    assert sum(rows * longest for rows, longest in found.groups) == len(found.padded)
    descending, first = sorted(lengths, reverse=True), 0
    for rows, longest in found.groups:
        group = descending[first : first + rows]
        assert group[0] == longest
        assert group[-1] >= SHORTEST_SHARE * longest
        first += rows
        assert all(length < SHORTEST_SHARE * longest for length in descending[first:])
    assert len(found.padded) <= sum(lengths) / SHORTEST_SHARE


def test_bounds_are_those_that_the_kernels_want() -> None:
    for device in (CPU, META):
        found = packing([3, 1, 5], device)
        assert found.cu_seqlens.dtype == torch.int32
        assert found.cu_seqlens.shape == (4,)
        assert found.longest == 5
    assert packing([3, 1, 5]).cu_seqlens.tolist() == [0, 3, 4, 9]


def test_dropout_drops_weights() -> None:
    """Where every value is 1, a token's result is the sum of the weights that are left, scaled up: 0.4 of them go."""
    torch.manual_seed(1)
    lengths = [1] * 3000 + [2] * 1500
    result = packed_attention(torch.ones(sum(lengths), 3, 1, 8), packing(lengths), dropout=0.4)[:, 0]
    assert torch.equal(result, result[:, :1].expand_as(result))
    first, both = result[:3000, 0], result[3001::2, 0] * 0.6
    kept = 1 / 0.6
    assert float((first == 0).float().mean()) == pytest.approx(0.4, abs=0.04)
    torch.testing.assert_close(first[first != 0], torch.full_like(first[first != 0], kept))
    for sum_left, share in ((0.0, 0.16), (0.5, 0.48), (1.0, 0.36)):
        assert float((both - sum_left).abs().lt(1e-5).float().mean()) == pytest.approx(share, abs=0.04)


class Calls(TorchDispatchMode):
    """The names of the attention operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.causal: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            self.names.append(func.overloadpacket.__name__)
            places = {argument.name: place for place, argument in enumerate(func._schema.arguments)}
            name = "is_causal" if "is_causal" in places else "custom_mask_type"
            self.causal.add(bool(args[places[name]]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("dtype", "head_size", "kernel"),
    [
        (torch.float16, 32, "flash"),
        (torch.bfloat16, 256, "flash"),
        (torch.float32, 32, "efficient"),
        (torch.float32, 512, "efficient"),
    ],
)
def test_a_card_runs_one_kernel_with_variable_lengths(
    dtype: torch.dtype, head_size: int, kernel: str, causal: bool
) -> None:
    joined = torch.randn(9, 3, 2, head_size, dtype=dtype, device=META, requires_grad=True)
    with Calls() as calls:
        result = packed_attention(joined, packing([3, 1, 5], META), dropout=0.1, causal=causal)
        result.sum().backward()
    assert result.shape == (9, 2, head_size)
    assert result.dtype == dtype
    assert joined.grad is not None
    assert calls.names == [f"_{kernel}_attention_forward", f"_{kernel}_attention_backward"]
    assert calls.causal == {causal}
