"""Attention over packed sequences as a card runs it, against the groups that a CPU pads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from srsplan.kernels.attention import pack, packed_attention

ALLOWED = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
"""Largest relative error of result and gradient, by norm."""
LENGTHS = [1, 200, 17, 3, 64, 65, 1, 128, 5]


def run(joined: Tensor, device: torch.device, dropout: float = 0.0) -> list[Tensor]:
    """Result and gradient in float64, on the CPU."""
    joined = joined.detach().to(device).requires_grad_()
    found = packed_attention(joined, pack(np.cumsum([0, *LENGTHS]), device), dropout)
    weights = torch.linspace(-1, 1, found.numel(), device=device).view_as(found)
    (found * weights).sum().backward()
    assert joined.grad is not None
    return [found.detach().double().cpu(), joined.grad.double().cpu()]


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize(("heads", "head_size"), [(2, 32), (1, 64), (4, 128), (1, 256)])
def test_a_card_computes_what_a_cpu_does(dtype: torch.dtype, heads: int, head_size: int, device: torch.device) -> None:
    torch.manual_seed(head_size)
    joined = torch.randn(sum(LENGTHS), 3, heads, head_size).to(dtype)
    for ours, truth in zip(run(joined, device), run(joined.double(), torch.device("cpu")), strict=True):
        assert float((ours - truth).norm() / truth.norm()) <= ALLOWED[dtype]


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
def test_a_card_drops_weights(dtype: torch.dtype, device: torch.device) -> None:
    """A first token attends to itself alone: its weight is dropped in every head by itself, or scaled up."""
    torch.manual_seed(1)
    joined = torch.ones(20_000, 3, 4, 32, dtype=dtype, device=device, requires_grad=True)
    result = packed_attention(joined, pack(np.arange(20_001), device), dropout=0.25)
    zero = result[:, :, 0] == 0
    assert float(zero.float().mean()) == pytest.approx(0.25, abs=0.01)
    kept = result[:, :, 0][~zero].float()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75), rtol=1e-2, atol=0)
    result.sum().backward()
    assert joined.grad is not None
    assert torch.equal(joined.grad[:, 2, :, 0] == 0, zero)


def test_evaluation_needs_no_gradient(device: torch.device) -> None:
    torch.manual_seed(2)
    joined, packing = torch.randn(sum(LENGTHS), 3, 2, 32, device=device), pack(np.cumsum([0, *LENGTHS]), device)
    with torch.no_grad():
        alone = packed_attention(joined, packing)
    torch.testing.assert_close(alone, packed_attention(joined.requires_grad_(), packing).detach())
