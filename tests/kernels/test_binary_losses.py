"""The binary losses against their papers' formulas, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from srsplan.kernels import Sampling, bce
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.in_batch import in_batch

IGNORED, TOKENS, CATALOG, DIM = -100, 37, 101, 24
CPU = torch.device("cpu")


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """hidden [M, D], table [V, D], targets [M] of which some are ignored."""
    torch.manual_seed(7)
    targets = torch.randint(CATALOG, (TOKENS,))
    targets[3::5] = IGNORED
    return torch.randn(TOKENS, DIM), torch.randn(CATALOG, DIM) * 0.3, targets


def with_collisions(count: int, targets: Tensor) -> Tensor:
    """Items [M, ns] of which the first of nine tokens is their target, where they have one."""
    items = torch.randint(CATALOG, (TOKENS, count))
    items[:9, 0] = targets[:9].clamp(min=0)
    assert bool((items[:, 0] == targets).any())
    return items


def truth_bce(hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    """Equations 3 and 4 of the paper: the sum over negatives, token by token; the target is no negative."""
    losses = []
    for row, target, drawn in zip(hidden, targets.tolist(), items.tolist(), strict=True):
        if target != IGNORED:
            against = [-torch.log(1 - torch.sigmoid(table[item] @ row)) for item in drawn if item != target]
            losses.append(torch.stack([-torch.log(torch.sigmoid(table[target] @ row)), *against]).sum())
    return torch.stack(losses).mean()


def assert_near(found: Tensor, expected: Tensor, ours: list[Tensor], truth: list[Tensor]) -> None:
    """Loss and both gradients."""
    found.backward()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert float((mine.grad - true.grad).norm() / true.grad.norm()) < 2e-5


def leaves(hidden: Tensor, table: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    ours = [each.clone().requires_grad_() for each in (hidden, table)]
    return ours, [each.double().requires_grad_() for each in (hidden, table)]


@pytest.mark.parametrize("count", [1, 2, 30])
def test_bce_equals_its_definition(count: int) -> None:
    hidden, table, targets = tensors()
    items = with_collisions(count, targets)
    ours, truth = leaves(hidden, table)
    assert_near(bce(*ours, targets, items), truth_bce(*truth, targets, items), ours, truth)


@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in-batch"])
def test_bce_draws_by_its_sampler(sampler: str) -> None:
    """The items are those that `draw_items` gives for the token's number in its batch."""
    hidden, table, targets = tensors()
    drawn_by = {
        "uniform": None,
        "popularity": popularity(np.arange(CATALOG), 0.75),
        "in-batch": in_batch(targets.clamp(min=0), CATALOG),
    }[sampler]
    sampling = Sampling(tokens_per_set=1, seed=3, step=5, first_token=11)
    items = draw_items((TOKENS, 8), CATALOG, sampling, 11, CPU, drawn_by)
    found = bce(hidden, table, targets, 8, sampling=sampling, distribution=drawn_by)
    assert float(found) == pytest.approx(float(bce(hidden, table, targets, items)), rel=1e-6)
