"""Every sampler in every form of the sampled softmax, against the definition in float64."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import numpy as np
import pytest
import torch
from kernel_draws import kernel_draws
from scipy.stats import chisquare
from torch import Tensor

from srsplan.kernels import Sampling, cce_neg, ce, ce_neg
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.samplers.alias_table import Distribution, distribution, popularity
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.in_batch import InBatch, in_batch
from srsplan.kernels.samplers.mixed import mixed

IGNORED = -100
CPU = torch.device("cpu")
SHAPES = [(7, 50, 16, 33, 16), (33, 90, 32, 21, 1), (37, 200, 112, 19, 16), (70, 101, 48, 40, 32)]
"""tokens, catalog, D, negatives, tokens a set"""


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(sum(shape))
    tokens, catalog, dim, *_ = shape
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    return torch.randn(tokens, dim), torch.randn(catalog, dim) * 0.3, targets


def source(name: str, catalog: int, targets: Tensor, negatives: int = 1) -> Distribution | InBatch | None:
    if name == "uniform":
        return None
    if name == "mixed":
        return mixed(targets, catalog, negatives, 0.3, IGNORED)
    return popularity(np.arange(catalog), 0.75) if name == "popularity" else in_batch(targets, catalog, IGNORED)


def shares(drawn_by: Distribution | InBatch | None, catalog: int) -> Tensor:
    if drawn_by is None:
        return torch.full((catalog,), 1 / catalog, dtype=torch.float64)
    return drawn_by.log_prob.double().exp()


def defined(
    hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor, share: Tensor, mixture: bool = False
) -> Tensor:
    """The loss from its definition, items [M, ns]: what is drawn and not the target stands for (1 - q_t) / (n q_i),
    where n are not the target; in a mixture for 1 / (ns q_i)."""
    losses = []
    for row, target, drawn in zip(hidden, targets.tolist(), items, strict=True):
        if target != IGNORED:
            kept = drawn[drawn != target]
            weight = 1 / len(drawn) if mixture else (1 - share[target]) / max(1, len(kept))
            scores = table[kept] @ row + torch.log(weight / share[kept])
            positive = table[target] @ row
            losses.append(torch.logsumexp(torch.cat([positive[None], scores]), 0) - positive)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("form", ["eager", "chunked", "triton"])
@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in-batch", "mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_of_every_sampler(shape: tuple[int, ...], sampler: str, form: str) -> None:
    tokens, catalog, _, negatives, group = shape
    hidden, table, targets = inputs(shape)
    drawn_by = source(sampler, catalog, targets, negatives)
    if form == "eager":
        group = 1
    sampling, sets = Sampling(tokens_per_set=group, seed=3, step=5, blocks=False), -(-tokens // group)
    draw = kernel_draws if form == "triton" else lambda *a: draw_items(a[0], a[1], a[2], 0, CPU, a[3])
    items = draw((sets, negatives), catalog, sampling, drawn_by)
    spread = items[torch.arange(tokens) % sets]
    loss = {"eager": ce_neg, "chunked": cce_neg, "triton": cce_neg_triton}[form]
    ours = [each.clone().requires_grad_() for each in (hidden, table)]
    truth = [each.double().requires_grad_() for each in (hidden, table)]
    found = loss(ours[0], ours[1], targets, negatives, sampling=sampling, distribution=drawn_by)
    expected = defined(truth[0], truth[1], targets, spread, shares(drawn_by, catalog), sampler == "mixed")
    found.backward()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert float((mine.grad - true.grad).norm() / true.grad.norm()) < 2e-5


@pytest.mark.parametrize("form", ["chunked", "triton"])
def test_draws_follow_their_distribution(form: str) -> None:
    weights = 1 / np.arange(1, 301) ** 0.9
    targets = torch.from_numpy(np.random.default_rng(2).choice(300, 5000, p=weights / weights.sum()))
    for drawn_by in (distribution(weights), in_batch(targets, 300)):
        share = shares(drawn_by, 300).numpy()
        sampling = Sampling(seed=11)
        if form == "triton":
            items = kernel_draws((10, 6400), 300, sampling, drawn_by)
        else:
            items = draw_items((10, 6400), 300, sampling, 0, CPU, drawn_by)
        counts = torch.bincount(items.reshape(-1), minlength=300).numpy()
        assert not counts[share == 0].any()
        assert chisquare(counts[share > 0], share[share > 0] / share.sum() * counts.sum()).pvalue > 1e-4


@pytest.mark.parametrize("sampler", ["popularity", "in-batch"])
def test_the_corrected_loss_nears_the_full_one(sampler: str) -> None:
    """By popularity: that of the catalog. In-batch: that of the items which the batch's targets are."""
    hidden, table, targets = inputs((64, 40, 16, 1, 1))
    drawn_by = source(sampler, 40, targets)
    there = shares(drawn_by, 40) > 0
    scores = (hidden @ table.T).masked_fill(~there, -torch.inf)
    keep = targets != IGNORED
    full = float(torch.nn.functional.cross_entropy(scores[keep], targets[keep]))
    if sampler == "popularity":
        assert full == pytest.approx(float(ce(hidden, table, targets)), rel=1e-6)
    gaps = [
        abs(np.mean([float(cce_neg(hidden, table, targets, negatives, distribution=drawn_by,
                                   sampling=Sampling(tokens_per_set=1, seed=seed))) for seed in range(8)]) - full)
        for negatives in (4, 4096)
    ]  # fmt: skip
    assert gaps[1] < 0.01 < gaps[0]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_popularity_is_in_proportion_to_counts(exponent: float) -> None:
    """An item that was never counted weighs as one that was counted once."""
    weights = np.array([1, 1, 2, 7, 1]) ** exponent
    found = popularity(np.array([0, 1, 2, 7, 0]), exponent)
    assert found.log_prob.double().exp().tolist() == pytest.approx((weights / weights.sum()).tolist(), rel=1e-6)
    if exponent == 1:
        assert torch.equal(found.log_prob, popularity(np.array([0, 1, 2, 7, 0])).log_prob)


def test_a_resumed_step_draws_the_same() -> None:
    drawn_by = popularity(np.arange(1000))
    first, again, other = (
        draw_items((3, 64), 1000, Sampling(seed=1, step=step), 0, CPU, drawn_by) for step in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert (first == other).float().mean() < 0.1


def test_given_items_and_a_distribution_contradict_each_other() -> None:
    hidden, table, targets = inputs(SHAPES[0])
    drawn_by, items = popularity(np.arange(50)), torch.zeros(7, 3, dtype=torch.long)
    for loss in (ce_neg, cce_neg, cce_neg_triton):
        with pytest.raises(ValueError, match="give one of the two"):
            loss(hidden, table, targets, items, distribution=drawn_by)


def test_a_hidden_size_beyond_the_registers_is_refused() -> None:
    hidden, table, targets = torch.randn(4, 512), torch.randn(9, 512), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="up to 256 in fp32 and 1024 in 16 bit"):
        cce_neg_triton(hidden, table, targets, 3)
