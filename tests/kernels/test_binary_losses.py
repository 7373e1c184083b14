"""The binary losses against their papers' formulas, written out in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from srsplan.kernels import Sampling, bce, gbce
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.in_batch import in_batch

IGNORED, TOKENS, CATALOG, DIM = -100, 37, 101, 24
CPU = torch.device("cpu")
Pair = tuple[Tensor, Tensor]


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


def truth_gbce(hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor, calibration: float) -> Tensor:
    """The paper's formula: the positive's sigmoid to the power of beta, the mean over it and the negatives."""
    count = items.shape[1]
    alpha = count / (len(table) - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    losses = []
    for row, target, drawn in zip(hidden, targets.tolist(), items.tolist(), strict=True):
        if target != IGNORED:
            against = [torch.log(1 - torch.sigmoid(table[item] @ row)) for item in drawn if item != target]
            positive = torch.log(torch.sigmoid(table[target] @ row) ** beta)
            losses.append(-torch.stack([positive, *against]).sum() / (count + 1))
    return torch.stack(losses).mean()


def assert_near(found: Tensor, expected: Tensor, ours: Pair, truth: Pair) -> None:
    """Loss and both gradients."""
    found.backward()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert float((mine.grad - true.grad).norm() / true.grad.norm()) < 2e-5


def leaves(hidden: Tensor, table: Tensor) -> tuple[Pair, Pair]:
    """Both as they are and in float64, for gradients."""
    ours = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    return ours, (hidden.double().requires_grad_(), table.double().requires_grad_())


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


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("count", [1, 30, 100])
def test_gbce_equals_its_definition(count: int, calibration: float) -> None:
    hidden, table, targets = tensors()
    items = with_collisions(count, targets)
    ours, truth = leaves(hidden, table)
    expected = truth_gbce(*truth, targets, items, calibration)
    assert_near(gbce(*ours, targets, items, calibration=calibration), expected, ours, truth)


def test_gbce_without_calibration_is_the_mean_of_bce() -> None:
    hidden, table, targets = tensors()
    items = with_collisions(30, targets)
    found = gbce(hidden, table, targets, items, calibration=0.0)
    assert float(found) == pytest.approx(float(bce(hidden, table, targets, items)) / 31, rel=1e-6)


@pytest.mark.parametrize("loss", [bce, gbce])
def test_scores_far_from_0_neither_overflow_nor_vanish(loss: Callable[..., Tensor]) -> None:
    """A target 200 below 0, a negative 200 above: 200 each, with a gradient; in fp32 their sigmoids are 0 and 1."""
    table = torch.zeros(9, 8)
    table[0, 0], table[1, 0] = -200.0, 200.0
    hidden = torch.zeros(1, 8, requires_grad=True)
    with torch.no_grad():
        hidden[0, 0] = 1.0
    found = loss(hidden, table, torch.tensor([0]), torch.tensor([[1]]))
    beta = 1 if loss is bce else 1 - 0.75 * (1 - 1 / 8)
    assert float(found.detach()) == pytest.approx((beta * 200 + 200) / (1 if loss is bce else 2))
    found.backward()
    assert hidden.grad is not None
    assert float(hidden.grad[0, 0]) == pytest.approx(float(found.detach()), rel=1e-5)


@pytest.mark.parametrize("calibration", [-0.1, 1.5])
def test_a_calibration_beyond_its_range_is_refused(calibration: float) -> None:
    with pytest.raises(ValueError, match=r"is outside \[0, 1\]"):
        gbce(*tensors(), 3, calibration=calibration)
