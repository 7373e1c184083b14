"""The Triton sampled softmax in the interpreter: against float64, against eager, and its sampler against chance."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import numpy as np
import pytest
import torch
from kernel_draws import kernel_draws
from scipy.stats import chisquare
from torch import Tensor

from srsplan.kernels import Sampling, ce, ce_neg
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.sampled_softmax.operators import Numbers, sampled_softmax, sampled_softmax_backward
from srsplan.kernels.samplers.alias_table import Distribution, distribution, popularity
from srsplan.kernels.samplers.kind import SamplerKind

IGNORED = -100
# tokens, catalog, D, negatives, tokens a set: sizes that divide nothing
SHAPES = [
    (1, 2, 16, 1, 1), (2, 3, 16, 5, 2), (5, 7, 32, 3, 1), (7, 50, 16, 33, 16), (9, 50, 48, 7, 1), (16, 33, 64, 31, 16),
    (17, 101, 80, 32, 16), (31, 64, 16, 40, 31), (33, 90, 32, 65, 32), (37, 1000, 112, 19, 16), (63, 77, 16, 17, 64),
    (70, 101, 48, 19, 33), (97, 300, 160, 9, 128), (130, 515, 16, 50, 32),
    (3, 11, 96, 2, 2), (11, 29, 144, 13, 3), (19, 403, 32, 37, 17), (43, 61, 16, 6, 64), (59, 999, 80, 23, 1),
    (88, 47, 48, 45, 5),
]  # fmt: skip


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, table_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, table, targets with some ignored, negatives [sets, ns] with collisions."""
    torch.manual_seed(sum(shape))
    tokens, catalog, dim, negatives, group = shape
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    sets = -(-tokens // group)
    drawn = torch.randint(catalog, (sets, negatives))
    return torch.randn(tokens, dim).to(dtype), (torch.randn(catalog, dim) * 0.3).to(table_dtype), targets, drawn


def gradients(loss: object, hidden: Tensor, table: Tensor, *arguments: object, **options: object) -> tuple[Tensor, ...]:
    """(value, gradients) in float64."""
    x, y = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    value = loss(x, y, *arguments, **options)  # type: ignore[operator]
    (value * torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    return value.detach().double(), x.grad.double(), y.grad.double()


def errors(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> list[float]:
    return [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, truth, strict=True)]


@pytest.mark.parametrize(("reduction", "deterministic"), [("mean", False), ("mean", True), ("none", False)])
@pytest.mark.parametrize("types", ["fp32", "fp16", "fp16 with an fp32 table"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(shape: tuple[int, ...], types: str, reduction: str, deterministic: bool) -> None:
    dtype = torch.float32 if types == "fp32" else torch.float16
    table_dtype = torch.float16 if types == "fp16" else torch.float32
    hidden, table, targets, drawn = inputs(shape, dtype, table_dtype)
    spread = drawn[torch.arange(len(hidden)) % len(drawn)]
    truth = gradients(ce_neg, hidden.double(), table.double(), targets, spread, reduction=reduction)
    options = {"reduction": reduction, "deterministic": deterministic}
    found = errors(gradients(cce_neg_triton, hidden, table, targets, drawn, **options), truth)
    assert max(found) <= (1e-5 if dtype == torch.float32 else 1e-3)
    if table.dtype == dtype:
        eager = errors(gradients(ce_neg, hidden, table, targets, spread, reduction=reduction), truth)
        # eager may be exact by luck on a handful of numbers: the format's precision is always allowed
        assert all(
            ours <= max(2 * theirs, 4 * torch.finfo(dtype).eps) for ours, theirs in zip(found, eager, strict=True)
        )


def test_forward_and_backward_draw_the_same_items() -> None:
    """The kernel's own draw, read out and given to eager, leads to the same gradients: for every sampler."""
    hidden, table, targets, _ = inputs((33, 90, 32, 21, 16), torch.float32, torch.float32)
    for weights in (None, popularity(np.arange(90), 0.75)):
        sampling = Sampling(tokens_per_set=16, seed=2**40 + 17, step=2**31 + 5, blocks=False)
        items = draw(90, 21, 3, sampling, weights)
        spread = items[torch.arange(33) % 3]
        truth = gradients(_weighted_ce_neg, hidden.double(), table.double(), targets, spread, weights)
        options = {"sampling": sampling, "distribution": weights}
        found = gradients(cce_neg_triton, hidden, table, targets, 21, **options)
        assert max(errors(found, truth)) <= 1e-5


def _weighted_ce_neg(
    hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor, weights: Distribution | None
) -> Tensor:
    """From the definition, with log-Q of any distribution."""
    share = torch.full((len(table),), 1 / len(table), dtype=torch.float64)
    if weights is not None:
        share = weights.log_prob.double().exp()
    losses = []
    for row, target, drawn in zip(hidden, targets.tolist(), items, strict=True):
        if target == IGNORED:
            continue
        kept = drawn[drawn != target]
        scores = table[kept] @ row + torch.log((1 - share[target]) / (share[kept] * max(1, len(kept))))
        positive = table[target] @ row
        losses.append(torch.logsumexp(torch.cat([positive[None], scores]), 0) - positive)
    return torch.stack(losses).mean()


def draw(catalog: int, negatives: int, sets: int, sampling: Sampling, weights: Distribution | None = None) -> Tensor:
    """The kernel's negatives, int64 [sets, ns]."""
    return kernel_draws((sets, negatives), catalog, sampling, weights)


@pytest.mark.parametrize("catalog", [2, 37, 1000])
def test_uniform_draws_pass_a_chi_square_test(catalog: int) -> None:
    items = draw(catalog, 6400, 10, Sampling(seed=1)).reshape(-1)
    assert items.min() >= 0
    assert items.max() < catalog
    assert chisquare(torch.bincount(items, minlength=catalog).numpy()).pvalue > 1e-4


def test_weighted_draws_pass_a_chi_square_test() -> None:
    weights = 1 / np.arange(1, 301) ** 0.9
    items = draw(300, 6400, 10, Sampling(seed=1), distribution(weights)).reshape(-1)
    expected = weights / weights.sum() * len(items)
    assert chisquare(torch.bincount(items, minlength=300).numpy(), expected).pvalue > 1e-4


def test_draws_of_neighbours_are_independent() -> None:
    """Pairs of slots that are next to each other, a warp apart, in the next set, and duplicates within a set."""
    items = draw(16, 3200, 40, Sampling(seed=3))
    for first, second in (
        (items[:, :-1], items[:, 1:]), (items[:, :-32], items[:, 32:]), (items[:-1], items[1:]),
    ):  # fmt: skip
        assert chisquare(torch.bincount((first * 16 + second).reshape(-1), minlength=256).numpy()).pvalue > 1e-4
    wide = draw(200_000, 3200, 40, Sampling(seed=4))
    repeated = sum(3200 - len(row.unique()) for row in wide)
    expected = 40 * (3200 - 200_000 * (1 - (1 - 1 / 200_000) ** 3200))
    assert abs(repeated - expected) < 4 * expected**0.5


def test_draws_depend_on_seed_step_and_set_and_on_nothing_else() -> None:
    first = draw(10**6, 64, 3, Sampling(seed=5, step=6))
    assert torch.equal(first, draw(10**6, 64, 3, Sampling(seed=5, step=6)))
    assert torch.equal(first[:, :40], draw(10**6, 40, 3, Sampling(seed=5, step=6)))
    for other in (Sampling(seed=6, step=6), Sampling(seed=5, step=7), Sampling(seed=5 + 2**32, step=6)):
        assert (first == draw(10**6, 64, 3, other)).float().mean() < 0.01
    assert (first[0] == first[1]).float().mean() < 0.05


def test_the_sampled_loss_nears_the_full_one() -> None:
    hidden, table, targets, _ = inputs((32, 200, 16, 1, 1), torch.float32, torch.float32)
    full = float(ce(hidden, table, targets))
    gaps = []
    for negatives in (4, 64, 1024):
        for weights in (None, popularity(np.arange(200) + 5)):
            draws = [Sampling(tokens_per_set=16, seed=seed) for seed in range(6)]
            values = [
                float(cce_neg_triton(hidden, table, targets, negatives, sampling=each, distribution=weights))
                for each in draws
            ]
            gaps.append(abs(np.mean(values) - full))
    assert max(gaps[4:]) < 0.05
    assert max(gaps[4:]) < min(gaps[:2])


def test_deterministic_runs_are_bitwise_equal() -> None:
    hidden, table, targets, _ = inputs((130, 40, 32, 1, 1), torch.float16, torch.float32)
    runs = [gradients(cce_neg_triton, hidden, table, targets, 30, deterministic=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_and_all_ignored() -> None:
    table = torch.randn(9, 16, requires_grad=True)
    for hidden, targets in (
        (torch.randn(0, 16), torch.empty(0, dtype=torch.long)),
        (torch.randn(6, 16), torch.full((6,), IGNORED)),
    ):
        table.grad = None
        value = cce_neg_triton(hidden, table, targets, 5)
        value.backward()
        assert value == 0
        assert table.grad is not None
        assert not table.grad.any()


def test_non_contiguous_inputs() -> None:
    hidden, table, targets, drawn = inputs((37, 100, 32, 19, 16), torch.float32, torch.float32)
    plain = gradients(cce_neg_triton, hidden, table, targets, drawn)
    strided = gradients(cce_neg_triton, hidden.t().contiguous().t(), table.t().contiguous().t(), targets, drawn)
    assert max(errors(strided, plain)) <= 1e-6


@pytest.mark.parametrize("switches", [(True, False, False), (True, True, True)])
def test_operators_keep_torchs_rules(switches: tuple[bool, bool, bool]) -> None:
    """Schema, fake implementation, autograd registration: what torch.compile and the ledger rely on."""
    hidden, table, targets, drawn = inputs((9, 30, 16, 7, 3), torch.float32, torch.float32)
    numbers = Numbers.of(CallSets.of(drawn, Sampling(), 9), Sampling(), IGNORED)
    arguments = (
        hidden.requires_grad_(),
        table.requires_grad_(),
        targets,
        int(SamplerKind.GIVEN),
        [drawn],
        list(numbers),
        None,
        None,
        *switches,
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(sampled_softmax, arguments, test_utils=tests)
    losses, shifts = (tensor.detach() for tensor in sampled_softmax(*arguments))
    detached = (hidden.detach(), table.detach(), *arguments[2:], losses, shifts, torch.ones(9))
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            sampled_softmax_backward, (*detached, *wanted), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize(
    ("hidden", "table", "phrase"),
    [
        (torch.zeros(3, 24), torch.zeros(5, 24), "no multiple of 16"),
        (torch.zeros(3, 2048), torch.zeros(5, 2048), "up to 1024"),
        (torch.zeros(3, 16), torch.zeros(5, 32), "one hidden size"),
        (torch.zeros(3, 16), torch.zeros(5, 16, dtype=torch.float16), "want fp16, bf16 or fp32"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(hidden: Tensor, table: Tensor, phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        cce_neg_triton(hidden, table, torch.zeros(3, dtype=torch.long), 2)


def test_an_alias_table_gives_back_its_distribution() -> None:
    weights = np.random.default_rng(0).random(5000) ** 4 + 1e-9
    table = distribution(weights)
    share = table.prob.double().numpy().copy()
    np.add.at(share, table.alias.numpy(), 1 - table.prob.double().numpy())
    assert share / 5000 == pytest.approx(weights / weights.sum(), rel=1e-4)
    with pytest.raises(ValueError, match="positive"):
        distribution(np.array([1.0, 0.0]))
