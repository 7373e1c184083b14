"""Negatives of which a part is the batch's: which they are, and that their sum estimates the catalog's."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
from collections.abc import Callable

import pytest
import torch
from kernel_draws import kernel_draws
from scipy.stats import chisquare
from torch import Tensor

from srsplan.kernels import Sampling, cce_neg, ce_neg
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.mixed import Mixed, mixed

CPU = torch.device("cpu")
CATALOG = 40


def batch_targets() -> Tensor:
    """Thirty targets, of the first ten items and not equally often."""
    return torch.tensor([item for item in range(10) for _ in range(item % 5 + 1)])


def drawn(form: str, shape: tuple[int, int], sampling: Sampling, source: Mixed) -> Tensor:
    if form == "triton":
        return kernel_draws(shape, CATALOG, sampling, source)
    return draw_items(shape, CATALOG, sampling, 0, CPU, source)


@pytest.mark.parametrize("form", ["chunked", "triton"])
@pytest.mark.parametrize(("share", "from_batch"), [(0.0, 0), (0.3, 600), (0.5201, 1040), (1.0, 2000)])
def test_the_first_of_a_set_are_the_batchs_and_the_others_uniform(share: float, from_batch: int, form: str) -> None:
    """In the numbers of draws that the share says, each part by its own distribution."""
    targets = batch_targets()
    source = mixed(targets, CATALOG, 2000, share)
    assert source.from_batch == from_batch
    items = drawn(form, (10, 2000), Sampling(seed=4), source)
    there = torch.bincount(targets, minlength=CATALOG).double() / len(targets)
    everywhere = torch.full((CATALOG,), 1 / CATALOG, dtype=torch.float64)
    for part, expected in ((items[:, :from_batch], there), (items[:, from_batch:], everywhere)):
        counts = torch.bincount(part.reshape(-1), minlength=CATALOG).double()
        assert not counts[expected == 0].any()
        if part.numel():
            possible = expected > 0
            assert chisquare(counts[possible], expected[possible] * part.numel()).pvalue > 1e-4
    mixture = from_batch / 2000 * there + (1 - from_batch / 2000) * everywhere
    torch.testing.assert_close(source.log_prob.double().exp(), mixture, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [ce_neg, cce_neg])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_estimated_sum_is_the_exact_one_on_average(share: float, loss: Callable[..., Tensor]) -> None:
    """exp(loss) is 1 + the estimated sum over the other items, relative to the target's: its mean over sets is exact.

    Every token is the same one, so that each set of one token is another draw.
    """
    torch.manual_seed(1)
    tokens, targets = 20_000, batch_targets()
    row, table = torch.randn(1, 16), torch.randn(CATALOG, 16) * 0.4
    for target in (3, 25):  # one of the batch, and one that is not there
        source, sampling = mixed(targets, CATALOG, 6, share), Sampling(tokens_per_set=1, seed=2)
        every = row.expand(tokens, 16), table, torch.full((tokens,), target)
        losses = loss(*every, 6, distribution=source, sampling=sampling, reduction="none")
        sums = losses.double().exp() - 1
        scores = table.double() @ row[0].double()
        exact = float((scores - scores[target]).exp().sum() - 1)
        assert abs(float(sums.mean()) - exact) < 4 * float(sums.std()) / tokens**0.5
        assert float(sums.std()) / tokens**0.5 < 0.02 * exact


def test_a_mixture_is_for_one_number_of_negatives() -> None:
    hidden, table, targets = torch.randn(5, 16), torch.randn(CATALOG, 16), batch_targets()[:5]
    for loss in (ce_neg, cce_neg, cce_neg_triton):
        with pytest.raises(ValueError, match="a mixture for 20 negatives of a set, and 19 are drawn"):
            loss(hidden, table, targets, 19, distribution=mixed(targets, CATALOG, 20, 0.5))
    with pytest.raises(ValueError, match=r"share 1.5 is outside \[0, 1\]"):
        mixed(targets, CATALOG, 20, 1.5)
