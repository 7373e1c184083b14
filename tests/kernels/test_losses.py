"""The losses against float64 written from the definition, and the chunked forms against the eager ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from srsplan.kernels import Sampling, bce, cce, cce_neg, ce, ce_neg, chunking
from srsplan.kernels.samplers.draw import draw_uniform

IGNORED = -100
EVERY_LOSS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    ce, cce, bce, lambda x, table, at: cce_neg(x, table, at, 5), lambda x, table, at: ce_neg(x, table, at, 5)
)  # fmt: skip
SHAPES = [(1, 2, 8), (7, 13, 8), (37, 101, 24), (130, 1000, 64), (257, 333, 40), (64, 5003, 16)]


@dataclass
class Case:
    """hidden [M, D], table [V, D] and targets [M] with some ignored."""

    hidden: Tensor
    table: Tensor
    targets: Tensor

    @classmethod
    def make(cls, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Case:
        torch.manual_seed(sum(shape))
        tokens, catalog, dim = shape
        hidden, table = torch.randn(tokens, dim), torch.randn(catalog, dim) * 0.3
        targets = torch.randint(catalog, (tokens,))
        targets[3::5] = IGNORED
        return cls(hidden.to(dtype), table.to(dtype), targets)

    def double(self) -> Case:
        return Case(self.hidden.double(), self.table.double(), self.targets)

    def run(self, loss: Callable[..., Tensor], **options: object) -> tuple[Tensor, Tensor, Tensor]:
        """(value, gradient of hidden, gradient of the table), for a random weighting of unreduced losses."""
        hidden, table = (tensor.clone().requires_grad_() for tensor in (self.hidden, self.table))
        value = loss(hidden, table, self.targets, **options)
        generator = torch.Generator().manual_seed(5)
        weights = torch.rand(value.shape, generator=generator).to(value.dtype)
        (value * weights).sum().backward()
        assert hidden.grad is not None
        assert table.grad is not None
        return value.detach(), hidden.grad, table.grad


def truth_ce(hidden: Tensor, table: Tensor, targets: Tensor, *, reduction: str) -> Tensor:
    """Row by row, from the definition."""
    losses = [
        torch.logsumexp(table @ row, 0) - table[target] @ row if target != IGNORED else row.sum() * 0
        for row, target in zip(hidden, targets.tolist(), strict=True)
    ]
    return _reduce(torch.stack(losses), targets, reduction)


def truth_ce_neg(hidden: Tensor, table: Tensor, targets: Tensor, *, items: Tensor, reduction: str) -> Tensor:
    """items [M, ns]: those equal to the target are left out, the rest weigh (V - 1) / their number."""
    losses = []
    for row, target, drawn in zip(hidden, targets.tolist(), items, strict=True):
        if target == IGNORED:
            losses.append(row.sum() * 0)
            continue
        kept = drawn[drawn != target]
        positive = table[target] @ row
        scores = table[kept] @ row + math.log(len(table) - 1) - math.log(max(1, len(kept)))
        losses.append(torch.logsumexp(torch.cat([positive[None], scores]), 0) - positive)
    return _reduce(torch.stack(losses), targets, reduction)


def _reduce(losses: Tensor, targets: Tensor, reduction: str) -> Tensor:
    valid = (targets != IGNORED).sum().clamp(min=1)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / valid}[reduction]


def assert_near(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for ours, exact in zip(found, truth, strict=True):
        error = (ours.double() - exact).norm() / exact.norm().clamp(min=1e-12)
        assert error <= tolerance


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", [ce, cce])
def test_full_softmax_equals_its_definition(
    loss: Callable[..., Tensor], shape: tuple[int, int, int], reduction: str
) -> None:
    case = Case.make(shape)
    truth = case.double().run(truth_ce, reduction=reduction)
    assert_near(case.run(loss, reduction=reduction), truth, 1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sampled_softmax_equals_its_definition(shape: tuple[int, int, int], group: int, reduction: str) -> None:
    case, tokens = Case.make(shape), shape[0]
    sets = torch.randint(shape[1], (-(-tokens // group), 19))
    items = sets[torch.arange(tokens) % len(sets)]
    truth = case.double().run(truth_ce_neg, items=items, reduction=reduction)
    assert_near(case.run(cce_neg, negatives=sets, reduction=reduction), truth, 1e-5)
    assert_near(case.run(ce_neg, negatives=items, reduction=reduction), truth, 1e-5)


@pytest.mark.parametrize("loss", [cce, cce_neg])
def test_several_chunks_equal_one(loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.make((257, 333, 40))
    options = {} if loss is cce else {"negatives": torch.randint(333, (86, 11))}
    whole = case.run(loss, **options)
    monkeypatch.setattr(chunking, "softmax_chunk_tokens", lambda tokens, catalog, on_cpu: 50)
    monkeypatch.setattr(chunking, "sampled_chunk_sets", lambda *sizes: 13)
    assert_near(case.run(loss, **options), tuple(tensor.double() for tensor in whole), 1e-6)


def test_every_chunk_draws_negatives_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine equal tokens, one in a chunk: their losses differ in nothing but what was drawn."""
    monkeypatch.setattr(chunking, "sampled_chunk_sets", lambda *sizes: 1)
    hidden, table, targets = torch.ones(9, 16), torch.randn(500, 16), torch.zeros(9, dtype=torch.long)
    losses = cce_neg(hidden, table, targets, 20, sampling=Sampling(tokens_per_set=1), reduction="none")
    assert len(set(losses.tolist())) == 9


def test_in_16_bit_every_block_of_items_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's gradient is added block by block; four blocks of 30 rows hold what one holds."""
    case = Case.make((37, 101, 24), torch.bfloat16)
    whole = case.run(cce)
    monkeypatch.setattr(chunking, "ITEM_ROWS", 30)
    assert_near(case.run(cce), tuple(tensor.double() for tensor in whole), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ["cce", "cce_neg"])
def test_16_bit_products_are_no_worse_than_twice_eager(loss: str, dtype: torch.dtype) -> None:
    case = Case.make((130, 1000, 64), dtype)
    items = torch.randint(1000, (130, 31))
    chunked, eager, truth = {
        "cce": (
            case.run(cce),
            case.run(ce),
            case.double().run(truth_ce, reduction="mean"),
        ),
        "cce_neg": (
            case.run(cce_neg, negatives=items),
            case.run(ce_neg, negatives=items),
            case.double().run(truth_ce_neg, items=items, reduction="mean"),
        ),
    }[loss]
    for ours, theirs, exact in zip(chunked, eager, truth, strict=True):
        error, allowed = ((tensor.double() - exact).norm() for tensor in (ours, theirs))
        # eager rounds the loss itself to 16 bit and may be exact by luck: the format's precision is allowed as well
        assert error <= max(2 * float(allowed), torch.finfo(dtype).eps * float(exact.norm()))


def test_fp16_keeps_the_small_gradients_of_a_mean_over_many_tokens() -> None:
    """Of 4,096 tokens: most entries of the table's gradient are below 1e-6, where fp16 has two digits or one."""
    torch.manual_seed(0)
    case = Case(torch.randn(4096, 16) * 1e-3, torch.randn(300, 16) * 0.3, torch.randint(300, (4096,)))
    truth = case.double().run(truth_ce, reduction="mean")
    assert float(truth[2].abs().median()) < 1e-6
    assert_near(case.run(cce, compute_dtype=torch.float16), truth, 1e-3)


def test_empty_batch_is_zero_with_zero_gradients() -> None:
    empty = torch.empty(0, dtype=torch.long)
    for loss in EVERY_LOSS:
        table = torch.randn(9, 8, requires_grad=True)
        value = loss(torch.randn(0, 8, requires_grad=True), table, empty)
        value.backward()
        assert value == 0
        assert table.grad is not None
        assert not table.grad.any()


def test_all_targets_ignored_is_zero() -> None:
    targets = torch.full((6,), IGNORED)
    for loss in EVERY_LOSS:
        assert loss(torch.randn(6, 8), torch.randn(9, 8), targets) == 0


def test_non_contiguous_inputs() -> None:
    case = Case.make((37, 101, 24))
    strided = Case(case.hidden.t().contiguous().t(), case.table.t().contiguous().t(), case.targets)
    assert_near(strided.run(cce), tuple(tensor.double() for tensor in case.run(cce)), 1e-6)


def test_second_backward_gives_the_gradient_again() -> None:
    case = Case.make((7, 13, 8))
    table = case.table.requires_grad_()
    value = cce(case.hidden, table, case.targets)
    value.backward(retain_graph=True)
    assert table.grad is not None
    first = table.grad.clone()
    value.backward()
    assert torch.allclose(table.grad, 2 * first)


def test_log_q_makes_the_sum_unbiased() -> None:
    """The estimated partition sum, averaged over draws, is the full one; and the loss nears full CE as ns grows."""
    case = Case.make((40, 500, 16))
    full = truth_ce(case.hidden, case.table, case.targets, reduction="none")
    gaps = []
    for negatives in (8, 64, 400):
        losses = torch.stack(
            [
                ce_neg(case.hidden, case.table, case.targets, negatives, reduction="none", sampling=Sampling(seed=seed))
                for seed in range(150)
            ]
        )
        keep = case.targets != IGNORED
        gaps.append(float((losses.mean(0) - full)[keep].abs().mean()))
        partition = losses.exp().mean(0)[keep] / full.exp()[keep]
        assert partition.mean() == pytest.approx(1, abs=0.05)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.02


def test_draws_repeat_and_differ() -> None:
    device = torch.device("cpu")
    sampling = Sampling(seed=3, step=11)
    first = draw_uniform((10, 50), 10_000, sampling, 0, device)
    assert first.shape == (10, 50)
    assert torch.equal(first, draw_uniform((10, 50), 10_000, sampling, 0, device))
    assert not torch.equal(first, draw_uniform((10, 50), 10_000, Sampling(seed=3, step=12), 0, device))
    assert not torch.equal(first, draw_uniform((10, 50), 10_000, sampling, 10, device))
    assert first.min() >= 0
    assert first.max() < 10_000


@pytest.mark.parametrize("loss", [ce, cce])
def test_an_unknown_reduction_is_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="'avg' is none of"):
        loss(torch.randn(2, 8), torch.randn(3, 8), torch.tensor([0, 1]), reduction="avg")


def test_a_target_whose_share_is_nothing_has_its_loss_all_the_same() -> None:
    """On a CPU the loss is read off the target's share, which fp32 cannot hold beside an item 120 nats above it."""
    table = torch.eye(4).repeat(1, 2).requires_grad_()
    hidden = torch.tensor([[120.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 2, 3, 4, 0, 0, 0, 0]], requires_grad=True)
    targets = torch.tensor([1, 2])
    losses = cce(hidden, table, targets, reduction="none")
    scores = hidden.detach().double() @ table.detach().double().T
    truth = scores.logsumexp(1) - scores.gather(1, targets[:, None])[:, 0]
    assert losses.detach().tolist() == pytest.approx(truth.tolist(), rel=1e-6)
    assert losses.detach()[0].item() == pytest.approx(120.0)
    losses.sum().backward()
    assert hidden.grad is not None
    shares = torch.softmax(scores, 1) - torch.nn.functional.one_hot(targets, 4)
    torch.testing.assert_close(hidden.grad.double(), shares @ table.detach().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [cce, partial(cce_neg, negatives=9)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_graph_that_is_kept_may_be_run_backward_again(form: Callable[..., Tensor], scale: float | None) -> None:
    """Each time the whole gradient is added, also where forward has added that of the table already."""
    torch.manual_seed(0)
    hidden, table = torch.randn(40, 8, requires_grad=True), torch.randn(60, 8, requires_grad=True)
    targets = torch.randint(60, (40,))
    once = torch.autograd.grad(form(hidden, table, targets) * 0.5, (hidden, table))
    loss = form(hidden, table, targets, backward_scale=scale) * 0.5
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(hidden.grad, times * once[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(table.grad, times * once[1], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        table.mul_(2)
    with pytest.raises(RuntimeError, match="its table have changed since"):
        loss.backward()
