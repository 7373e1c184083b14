"""The scalable cross-entropy against its paper's procedure, bucket by bucket in float64."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from srsplan.kernels import Sampling, ce, chunking, sce
from srsplan.kernels.bucket_softmax import gaussian_centres
from srsplan.kernels.dispatch import LossOptions, choose

IGNORED, CPU = -100, torch.device("cpu")
SAMPLING = Sampling(tokens_per_set=1, seed=3, step=5, first_token=7)
SHAPES = [(1, 9, 8, 3), (3, 30, 8, 5), (40, 70, 16, 12), (101, 200, 24, 31)]
"""tokens, catalog, D, items of a bucket"""


def inputs(tokens: int, catalog: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens)
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    hidden = torch.randn(tokens, dim)
    hidden[2::7] *= 1e-3  # no bucket takes them while there are others
    return hidden, torch.randn(catalog, dim) * 0.5, targets


def defined(hidden: Tensor, table: Tensor, targets: Tensor, count: int) -> dict[int, Tensor]:
    """The loss of every token that is in a bucket: the largest of its buckets."""
    buckets = min(len(hidden), int(2 * math.sqrt(len(hidden))))
    centres = gaussian_centres(buckets, hidden.shape[1], SAMPLING, CPU).double()
    valid = [token for token in range(len(hidden)) if targets[token] != IGNORED]
    found: dict[int, Tensor] = {}
    for centre in centres:
        by_token = sorted(valid, key=lambda token: -float(hidden[token].detach() @ centre))[:buckets]
        items = (table.detach() @ centre).argsort(descending=True)[:count]
        for token in by_token:
            target = int(targets[token])
            own = table[target] @ hidden[token]
            against = table[items[items != target]] @ hidden[token]
            loss = torch.logsumexp(torch.cat([own[None], against]), 0) - own
            found[token] = loss if token not in found or loss > found[token] else found[token]
    return found


@pytest.mark.parametrize("chunk", [1, 1 << 26])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sce_equals_its_definition(
    shape: tuple[int, int, int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and both gradients; buckets are filled one at a time, or all at once."""
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", chunk)
    tokens, catalog, dim, count = shape
    hidden, table, targets = inputs(tokens, catalog, dim)
    ours = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    truth = hidden.double().requires_grad_(), table.double().requires_grad_()
    losses = defined(*truth, targets, count)
    found = sce(*ours, targets, count, sampling=SAMPLING)
    expected = torch.stack(list(losses.values())).mean()
    found.backward()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert float((mine.grad - true.grad).norm() / true.grad.norm()) < 2e-5
    assert len(losses) < int((targets != IGNORED).sum()) or tokens < 8
    every = sce(hidden, table, targets, count, sampling=SAMPLING, reduction="none")
    assert {token for token, loss in enumerate(every.tolist()) if loss} == set(losses)


def test_with_all_other_items_it_is_the_full_softmax_of_the_covered_tokens() -> None:
    hidden, table, targets = inputs(40, 30, 16)
    found = sce(hidden, table, targets, 29, sampling=SAMPLING, reduction="none")
    full = ce(hidden, table, targets, reduction="none")
    covered = found > 0
    assert int(covered.sum()) > 20
    assert bool((found[covered] <= full[covered] + 1e-5).all())
    assert float((full - found)[covered].mean()) < 0.2


def test_centres_are_normal_and_repeatable() -> None:
    centres = gaussian_centres(200, 64, SAMPLING, CPU)
    assert kstest(centres.reshape(-1).numpy(), "norm").pvalue > 1e-3
    assert float((centres.T @ centres / 200 - torch.eye(64)).abs().max()) < 0.4
    assert torch.equal(centres, gaussian_centres(200, 64, SAMPLING, CPU))
    other = Sampling(tokens_per_set=1, seed=3, step=6, first_token=7)
    assert float((centres == gaussian_centres(200, 64, other, CPU)).float().mean()) < 0.01


def test_nothing_to_bucket_is_a_loss_of_0_with_gradients() -> None:
    hidden, table, targets = inputs(6, 9, 8)
    for rows, chosen in ((hidden[:0], targets[:0]), (hidden, torch.full_like(targets, IGNORED))):
        leaves = rows.clone().requires_grad_(), table.clone().requires_grad_()
        loss = sce(*leaves, chosen, 4)
        loss.backward()
        assert float(loss.detach()) == 0
        assert all(each.grad is not None and not each.grad.any() for each in leaves)


@pytest.mark.parametrize("count", [0, 9])
def test_a_bucket_has_between_one_and_all_other_items(count: int) -> None:
    with pytest.raises(ValueError, match="are not between 1 and the 8 others"):
        sce(*inputs(6, 9, 8), count)


def test_passes_have_centres_of_their_own() -> None:
    """Each call buckets its tokens, by centres that depend on its place in the batch."""
    hidden, table, targets = inputs(40, 70, 16)
    call = choose("sce", CPU, options=LossOptions(negatives=12))
    assert float(call.at(2, 0, 80)(hidden, table, targets)) == float(call.at(2)(hidden, table, targets))
    assert float(call.at(2, 40, 80)(hidden, table, targets)) != float(call.at(2)(hidden, table, targets))
