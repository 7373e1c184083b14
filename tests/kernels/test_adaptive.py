"""Of what a set draws every token keeps the hardest: in every form, against the definition in float64."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
from collections.abc import Callable

import pytest
import torch
from kernel_draws import kernel_draws
from torch import Tensor

from srsplan.kernels import Sampling, bce, cce_neg, ce_neg, chunking, gbce
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.mixed import mixed

IGNORED, CPU = -100, torch.device("cpu")
Pair = tuple[Tensor, Tensor]
FORMS: dict[str, Callable[..., Tensor]] = {"eager": ce_neg, "chunked": cce_neg, "triton": cce_neg_triton}
SHAPES = [(7, 50, 16, 33, 8, 16), (9, 90, 32, 21, 1, 1), (37, 200, 48, 19, 18, 5), (20, 60, 16, 12, 40, 4)]
"""tokens, catalog, D, candidates, kept, tokens a set; the last keeps more than there are."""


def inputs(tokens: int, catalog: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens + catalog)
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    return torch.randn(tokens, dim), torch.randn(catalog, dim) * 0.3, targets


def hardest_of(row: Tensor, table: Tensor, target: int, drawn: Tensor, kept: int) -> Tensor:
    """The scores that a token keeps, from the definition: of what is not its target, the highest, and their equals."""
    scores = (table @ row)[drawn[drawn != target]]
    return scores[scores >= scores.sort(descending=True).values[:kept].amin()]


def defined(hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor, kept: int) -> Tensor:
    """The mean loss, token by token: no logQ."""
    losses = []
    for row, target, drawn in zip(hidden, targets.tolist(), items, strict=True):
        if target != IGNORED:
            positive = table[target] @ row
            against = hardest_of(row, table, target, drawn, kept)
            losses.append(torch.logsumexp(torch.cat([positive[None], against]), 0) - positive)
    return torch.stack(losses).mean()


def leaves(hidden: Tensor, table: Tensor) -> tuple[Pair, Pair]:
    """Both as they are and in float64, for gradients."""
    ours = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    return ours, (hidden.double().requires_grad_(), table.double().requires_grad_())


def assert_near(found: Tensor, expected: Tensor, ours: Pair, truth: Pair) -> None:
    found.backward()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        assert float((mine.grad - true.grad).norm() / true.grad.norm()) < 2e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampler", ["adaptive", "adaptive-mixed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_form_keeps_the_hardest_of_the_same_draws(
    shape: tuple[int, ...], sampler: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and both gradients; the sets are worked on two at a time."""
    tokens, catalog, dim, candidates, kept, group = shape
    monkeypatch.setattr(chunking, "sampled_chunk_sets", lambda *_: 2)
    hidden, table, targets = inputs(tokens, catalog, dim)
    drawn_by = mixed(targets, catalog, candidates, 0.4, IGNORED) if sampler == "adaptive-mixed" else None
    group = 1 if form == "eager" else group
    sampling, sets = Sampling(tokens_per_set=group, seed=3, step=5, hardest=kept), -(-tokens // group)
    if form == "triton":
        items = kernel_draws((sets, candidates), catalog, sampling, drawn_by)
    else:
        items = draw_items((sets, candidates), catalog, sampling, 0, CPU, drawn_by)
    ours, truth = leaves(hidden, table)
    found = FORMS[form](*ours, targets, candidates, sampling=sampling, distribution=drawn_by)
    expected = defined(*truth, targets, items[torch.arange(tokens) % sets], kept)
    assert_near(found, expected, ours, truth)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [1, 5, 29])
def test_exactly_the_highest_scores_are_kept(form: str, kept: int) -> None:
    """The table's gradient is 0 but for the target and the kept items, each of which stands in the set once."""
    torch.manual_seed(kept)
    hidden, items = torch.randn(1, 16), torch.randperm(40)[:30]
    table = torch.randn(40, 16, requires_grad=True)
    target = int(items[4])
    FORMS[form](hidden, table, torch.tensor([target]), items[None], sampling=Sampling(hardest=kept)).backward()
    assert table.grad is not None
    others = [item for item in items.tolist() if item != target]
    best = sorted(others, key=lambda item: float(table[item].detach() @ hidden[0]), reverse=True)[:kept]
    assert {int(item) for item in table.grad.abs().sum(1).nonzero()[:, 0]} == {target, *best}


@pytest.mark.parametrize("loss", [bce, gbce])
def test_binary_losses_keep_the_hardest(loss: Callable[..., Tensor]) -> None:
    hidden, table, targets = inputs(37, 101, 24)
    items = torch.randint(101, (37, 30))
    ours, (rows, wide) = leaves(hidden, table)
    losses = []
    for row, target, drawn in zip(rows, targets.tolist(), items, strict=True):
        if target != IGNORED:
            against = -torch.log(1 - torch.sigmoid(hardest_of(row, wide, target, drawn, 6))).sum()
            positive = -torch.log(torch.sigmoid(wide[target] @ row))
            beta = 1 - 0.75 * (1 - 6 / 100)
            losses.append(positive + against if loss is bce else (beta * positive + against) / 7)
    found = loss(*ours, targets, items, sampling=Sampling(tokens_per_set=1, hardest=6))
    assert_near(found, torch.stack(losses).mean(), ours, (rows, wide))


@pytest.mark.parametrize("form", FORMS)
def test_equals_at_the_last_place_stay_together(form: str) -> None:
    """Items that are drawn twice have one score: where it is the last that is kept, both count."""
    hidden, table = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)), torch.eye(16)[:6] * 1.0
    order = (table @ hidden[0]).argsort(descending=True).tolist()
    items = torch.tensor([[order[1], order[2], order[2], order[3]]])
    found = FORMS[form](hidden, table, torch.tensor([order[0]]), items, sampling=Sampling(hardest=2))
    scores = table.double() @ hidden[0].double()
    kept = scores[torch.tensor([order[0], order[1], order[2], order[2]])]
    assert float(found) == pytest.approx(float(torch.logsumexp(kept, 0) - kept[0]), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_no_number_is_not_left_out(form: str) -> None:
    hidden, table, targets = inputs(9, 30, 16)
    items = torch.arange(1, 13).expand(9, 12).contiguous()
    table[5] = float("nan")
    assert not FORMS[form](hidden, table, torch.zeros_like(targets), items, sampling=Sampling(hardest=3)).isfinite()


def test_fewer_than_one_is_refused() -> None:
    with pytest.raises(ValueError, match="hardest 0 is below 1"):
        Sampling(hardest=0)
