"""The Triton kernels at the edges, in the interpreter: fitted tokens, numbers that are none, nothing to draw from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from srsplan.kernels import Sampling, cce_neg, ce, ce_neg, chunking, debug
from srsplan.kernels.full_softmax.api import cce_triton
from srsplan.kernels.full_softmax.grid import SoftmaxGrid
from srsplan.kernels.launches.table import Launch
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.sampled_softmax.operators import Numbers, _Call
from srsplan.kernels.samplers.alias_table import popularity
from srsplan.kernels.samplers.in_batch import in_batch
from srsplan.kernels.samplers.kind import SamplerKind
from srsplan.kernels.samplers.mixed import mixed
from srsplan.profiler.memory.ledger import Ledger

IGNORED = -100
SAMPLING = Sampling(tokens_per_set=16, seed=5, step=6)
INDEPENDENT = replace(SAMPLING, blocks=False)
LOSSES: dict[str, Any] = {
    "cce": cce_triton,
    "cce-": partial(cce_neg_triton, negatives=9, sampling=SAMPLING),
    "cce-, independent": partial(cce_neg_triton, negatives=9, sampling=INDEPENDENT),
    "cce-, repeatable": partial(cce_neg_triton, negatives=9, sampling=INDEPENDENT, deterministic=True),
}


def some() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    targets = torch.randint(300, (70,))
    targets[::7] = IGNORED
    return torch.randn(70, 32), torch.randn(300, 32), targets


def fitted(tokens: int, catalog: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, table, targets, in values that fp16 holds; losses from 1e-2 down to 1e-6."""
    torch.manual_seed(3)
    table = functional.normalize(torch.randn(catalog, dim), dim=1).half().float()
    targets = torch.arange(tokens) % catalog
    margin = torch.linspace(11, 24, tokens)
    return (table[targets] * margin[:, None]).half().float(), table, targets


def each_gradient(loss: Any, hidden: Tensor, table: Tensor, *arguments: object, scale: float = 65536.0) -> Tensor:
    """The gradient of every token's loss with respect to its hidden state, float64 [M, D], under a loss scale."""
    x, y = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    losses = loss(x, y, *arguments, reduction="none")
    (losses * scale).sum().backward()
    assert x.grad is not None
    return x.grad.double() / scale


def relative(found: Tensor, truth: Tensor) -> Tensor:
    shares: Tensor = (found - truth).norm(dim=1) / truth.norm(dim=1)
    return shares


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_gradient_of_a_fitted_token_keeps_its_digits(
    dtype: torch.dtype, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as small as the loss; fp16 has no digits there before a loss scale reaches it."""
    monkeypatch.setattr(SoftmaxGrid, "wanted_splits", lambda _: splits)
    hidden, table, targets = fitted(40, 600, 64)
    losses = ce(hidden.double(), table.double(), targets, reduction="none")
    assert losses.min() < 2e-6
    assert losses.max() > 1e-3
    truth = each_gradient(ce, hidden.double(), table.double(), targets)
    found = each_gradient(cce_triton, hidden.to(dtype), table.to(dtype), targets)
    assert float(relative(found, truth).max()) < (1e-3 if dtype == torch.float16 else 1e-5)


def sampled(hidden: Tensor, table: Tensor, targets: Tensor, items: Tensor, reduction: str = "none") -> Tensor:
    """The sampled loss of uniform negatives [M, ns] from its definition, in the inputs' type."""
    hit = items == targets[:, None]
    kept = (~hit).sum(1, keepdim=True).clamp(min=1)
    scores = torch.einsum("md,mnd->mn", hidden, table[items]) + torch.log((len(table) - 1) / kept)
    behind = torch.logsumexp(scores.masked_fill(hit, -torch.inf), 1) - (hidden * table[targets]).sum(1)
    return functional.softplus(behind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_sampled_gradient_of_a_fitted_token_keeps_its_digits(dtype: torch.dtype) -> None:
    hidden, table, targets = fitted(40, 600, 64)
    items = torch.randint(600, (40, 50))
    truth = each_gradient(sampled, hidden.double(), table.double(), targets, items)
    found = each_gradient(cce_neg_triton, hidden.to(dtype), table.to(dtype), targets, items)
    assert float(relative(found, truth).max()) < (1e-3 if dtype == torch.float16 else 1e-5)


def test_a_catalog_of_one_item_has_no_loss_and_no_gradient() -> None:
    for splits in (1, 2):
        hidden, table = torch.randn(5, 16, requires_grad=True), torch.randn(1, 16, requires_grad=True)
        value = cce_triton(hidden, table, torch.zeros(5, dtype=torch.long), reduction="sum")
        value.backward()
        assert value == 0, splits
        assert hidden.grad is not None
        assert table.grad is not None
        assert not hidden.grad.any()
        assert not table.grad.any()


@pytest.mark.parametrize("form", [cce_neg, cce_neg_triton])
@pytest.mark.parametrize("tokens", [0, 6])
def test_a_batch_of_ignored_targets_has_nothing_to_draw_from(form: object, tokens: int) -> None:
    targets = torch.full((tokens,), IGNORED)
    drawn_by = in_batch(targets, 9, IGNORED)
    assert len(drawn_by.slots)
    hidden, table = torch.randn(tokens, 16, requires_grad=True), torch.randn(9, 16, requires_grad=True)
    value = form(hidden, table, targets, 5, distribution=drawn_by)  # type: ignore[operator]
    value.backward()
    assert value == 0
    assert table.grad is not None
    assert not table.grad.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_the_repeatable_sum_does_not_hide_what_is_no_number(wrong: float) -> None:
    """One token's, and those of 40 of the same target: as integers two of them may add up to 0."""
    torch.manual_seed(1)
    for tokens, targets in ((slice(7, 8), torch.randint(30, (40,))), (slice(40), torch.zeros(40, dtype=torch.long))):
        hidden, table = torch.randn(40, 16), torch.randn(30, 16, requires_grad=True)
        hidden[tokens, 3] = wrong
        cce_neg_triton(hidden, table, targets, 5, deterministic=True).backward()
        assert table.grad is not None
        assert not table.grad[targets[7], 3].isfinite()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_repeatable_sum_does_not_hide_a_weight_that_is_no_number() -> None:
    hidden, table = torch.randn(40, 16), torch.randn(30, 16, requires_grad=True)
    loss = cce_neg_triton(hidden, table, torch.randint(30, (40,)), 5, deterministic=True, reduction="none")
    (loss * torch.where(torch.arange(40) == 9, torch.inf, 1.0)).sum().backward()
    assert table.grad is not None
    assert not table.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOSSES)
def test_a_row_that_is_no_number_shows_in_the_loss_and_in_both_gradients(name: str, wrong: float) -> None:
    """Of items that are no target: a maximum leaves NaN out."""
    hidden, table, targets = some()
    table[:150, 3] = wrong
    targets[(targets >= 0) & (targets < 150)] = 200
    loss = LOSSES[name](hidden.requires_grad_(), table.requires_grad_(), targets)
    loss.backward()
    assert hidden.grad is not None
    assert table.grad is not None
    assert not any(each.isfinite().all() for each in (loss, hidden.grad, table.grad))


def test_the_repeatable_sum_does_not_hide_that_it_left_its_range() -> None:
    """Every addend is within it: 2000 tokens of about 6e4 each, all for the same target."""
    hidden, table = torch.full((2000, 16), 6e4), torch.randn(30, 16) * 1e-8
    table.requires_grad_()
    targets = torch.zeros(2000, dtype=torch.long)
    cce_neg_triton(
        hidden, table, targets, 20, sampling=Sampling(blocks=False), deterministic=True, reduction="sum"
    ).backward()
    assert table.grad is not None
    assert table.grad[0].isnan().all()
    assert table.grad[1:].isfinite().all()


def test_a_set_of_millions_of_tokens_is_no_second_dimension_of_a_grid() -> None:
    """CUDA takes 65,535 programs there, and 2^31 in the first."""
    hidden, table = torch.empty(3_000_000, 16, device="meta"), torch.empty(9, 16, device="meta")
    numbers = Numbers(5, 0, 0, IGNORED, 2, 1_500_000, 0, 2, 0)
    targets = torch.empty(3_000_000, dtype=torch.long, device="meta")
    call = _Call(hidden, table, targets, SamplerKind.UNIFORM, [], numbers, (None, None))
    grid: tuple[int, ...] = call.grid(Launch(16, 16, 4, 1))
    assert grid[0] == 2 * 1_500_000 // 16
    assert all(size <= 65_535 for size in grid[1:])


@pytest.mark.parametrize("wrong", [30, -1, 2**40])
def test_a_target_beyond_the_catalog_is_an_error(wrong: int) -> None:
    hidden, table, targets = torch.randn(40, 16), torch.randn(30, 16), torch.randint(30, (40,))
    targets[11] = wrong
    said = rf"target {wrong} is outside of the catalog's \[0, 30\)"
    with pytest.raises(ValueError, match=said):
        cce_triton(hidden, table, targets)
    with pytest.raises(ValueError, match=said):
        cce_neg_triton(hidden, table, targets, 5)
    cce_triton(hidden, table, targets, ignore_index=wrong)
    cce_neg_triton(hidden, table, targets, 5, ignore_index=wrong)


def test_a_negative_beyond_the_catalog_is_an_error() -> None:
    hidden, table, targets = torch.randn(40, 16), torch.randn(30, 16), torch.randint(30, (40,))
    with pytest.raises(ValueError, match=r"negative 30 is outside of the catalog's \[0, 30\)"):
        cce_neg_triton(hidden, table, targets, torch.full((2, 5), 30))


def test_a_gpu_is_waited_for_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[Any] = [SimpleNamespace(device=torch.device(kind)) for kind in ("cpu", "meta", "cuda")]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv(debug.VARIABLE, raising=False)
    assert [debug.looked_at(each) for each in kinds] == [True, False, False]
    monkeypatch.setenv(debug.VARIABLE, "1")
    assert [debug.looked_at(each) for each in kinds] == [True, False, True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert [debug.looked_at(each) for each in kinds] == [True, False, False]


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("frozen", ["hidden", "table"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(
    name: str, frozen: str, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftmaxGrid, "wanted_splits", lambda _: splits)
    hidden, table, targets = some()
    both = [each.clone().requires_grad_() for each in (hidden, table)]
    one = [hidden.clone().requires_grad_(frozen != "hidden"), table.clone().requires_grad_(frozen != "table")]
    for tensors in (both, one):
        LOSSES[name](*tensors, targets).backward()
    learned = frozen == "hidden"
    assert one[not learned].grad is None
    torch.testing.assert_close(one[learned].grad, both[learned].grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_is_made_where_it_is_asked_for(name: str) -> None:
    """Of a graph that has both: `torch.autograd.grad` for one of them."""
    hidden, table, targets = some()
    wanted = hidden.requires_grad_(), table.requires_grad_()
    loss = LOSSES[name](hidden, table, targets)
    whole = torch.autograd.grad(loss, wanted, retain_graph=True)
    for each, expected in zip(wanted, whole, strict=True):
        (found,) = torch.autograd.grad(loss, each, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_frozen_takes_no_memory(name: str) -> None:
    """As the ledger has it: neither a gradient of the frozen one nor what it is made of."""
    half: dict[str, Any] = {"dtype": torch.float16, "device": "meta"}
    for tokens, catalog, frozen in ((1000, 100_000, "table"), (100_000, 1000, "hidden")):
        with Ledger(warm_process=True) as ledger:
            hidden = torch.empty(tokens, 64, requires_grad=frozen != "hidden", **half)
            table = torch.empty(catalog, 64, requires_grad=frozen != "table", **half)
            LOSSES[name](hidden, table, torch.zeros(tokens, dtype=torch.long, device="meta")).backward()
        tensors = 2 * 64 * (tokens + catalog)
        learned = 64 * min(tokens, catalog)
        # numbers of tokens; splits; and for blocks a direction of hidden, which is given, and what a sort takes
        rest = 60 * tokens if frozen == "hidden" else 4 * 16 * learned if name == "cce" else 0
        rest += 40 * tokens + 5 * catalog if name == "cce-" else 0
        assert ledger.trace.peak().allocated_bytes < tensors + 14 * learned + rest + 2**16


@pytest.mark.parametrize("name", LOSSES)
def test_a_graph_that_is_kept_may_be_run_backward_again(name: str) -> None:
    hidden, table, targets = some()
    loss = LOSSES[name](hidden.requires_grad_(), table.requires_grad_(), targets)
    loss.backward(retain_graph=True)
    once = [each.grad.clone() for each in (hidden, table) if each.grad is not None]
    loss.backward()
    for each, expected in zip((hidden, table), once, strict=True):
        torch.testing.assert_close(each.grad, 2 * expected, rtol=1e-5, atol=1e-8)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_gradients_are_refused(name: str) -> None:
    hidden, table, targets = some()
    loss = LOSSES[name](hidden.requires_grad_(), table.requires_grad_(), targets)
    (found,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula|does not require grad"):
        found.sum().backward()


@pytest.mark.parametrize("sampler", ["uniform", "popularity", "in-batch", "mixed"])
def test_a_seed_and_a_step_in_memory_draw_what_they_hold(sampler: str) -> None:
    """With the arguments of one call, as a CUDA graph that is replayed: the draws are those of equal ints."""
    hidden, table, targets = some()
    drawn_by = {
        "uniform": None, "popularity": popularity(np.arange(300)), "in-batch": in_batch(targets, 300, IGNORED),
        "mixed": mixed(targets, 300, 9, 0.4, IGNORED),
    }[sampler]  # fmt: skip
    seed, step = torch.tensor(2**40 + 1), torch.tensor(3)

    def run(seed: int | Tensor, step: int | Tensor) -> list[Tensor]:
        x, y = hidden.clone().requires_grad_(), table.clone().requires_grad_()
        sampling = Sampling(tokens_per_set=16, seed=seed, step=step)
        losses = cce_neg_triton(
            x, y, targets, 9, sampling=sampling, distribution=drawn_by, reduction="none", deterministic=True
        )
        losses.sum().backward()
        return [losses.detach(), *(each.grad for each in (x, y) if each.grad is not None)]

    seen = []
    for each in (1, 2**40 + 1):
        for other in (3, 2**33 + 4):
            seed.fill_(each)
            step.fill_(other)
            seen.append(run(seed, step))
            for moment in ((each, other), (seed, other), (each, step)):
                assert all(torch.equal(a, b) for a, b in zip(run(*moment), seen[-1], strict=True))
    assert len({tuple(losses.tolist()) for losses, *_ in seen}) == 4


def test_a_step_that_changes_before_backward_is_an_error() -> None:
    hidden, table, targets = some()
    step = torch.tensor(3)
    loss = cce_neg_triton(hidden, table.requires_grad_(), targets, 9, sampling=Sampling(step=step))
    step.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_no_number_of_a_step_is_refused() -> None:
    for wrong in (torch.zeros(1, dtype=torch.long), torch.zeros(())):
        with pytest.raises(ValueError, match=r"are int64 \[\]"):
            Sampling(seed=wrong)
        with pytest.raises(ValueError, match=r"are int64 \[\]"):
            Sampling(step=wrong)
    Sampling(seed=torch.empty((), dtype=torch.long, device="meta"))  # nothing is looked at
    hidden, table, targets = some()
    for loss in (ce_neg, cce_neg):
        with pytest.raises(ValueError, match="the other forms take ints"):
            loss(hidden, table, targets, 9, sampling=Sampling(tokens_per_set=1, step=torch.tensor(1)))


@pytest.fixture
def uninitialized() -> Iterator[None]:
    """New tensors hold NaN, and the largest integers, where nobody fills them."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("uninitialized")
@pytest.mark.parametrize("batch", [(0, 70), (3, 100), (37, 5000), (4900, 5000)], ids=str)
@pytest.mark.parametrize("name", ["cce", "cce-", "cce-, given"])
def test_every_element_of_what_is_not_zeroed_is_written(name: str, batch: tuple[int, int]) -> None:
    """Also where a call covers some places of its sets only, and where given sets have empty places."""
    assert torch.empty(3).isnan().all()
    hidden, table, targets = some()
    sampling = Sampling(tokens_per_set=16, first_token=batch[0], batch_tokens=batch[1])
    x, y = hidden.requires_grad_(), table.requires_grad_()
    if name == "cce":
        losses = cce_triton(x, y, targets, reduction="none")
    else:
        negatives = torch.randint(300, (9, 5)) if "given" in name else 5
        losses = cce_neg_triton(x, y, targets, negatives, sampling=sampling, reduction="none")
    losses.sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert all(each.isfinite().all() for each in (losses, x.grad, y.grad))
    assert bool(x.grad.any(dim=1).equal(targets != IGNORED))


def test_a_copy_of_the_table_pays_from_more_than_three_reads_of_a_row() -> None:
    """Six bytes an entry to make it, two saved by every read."""
    assert not chunking.table_copy_pays(32 * 60, 32, 50, 1000)
    assert chunking.table_copy_pays(32 * 61, 32, 50, 1000)


@pytest.mark.parametrize("name", ["cce", "cce-"])
def test_of_hiddens_size_are_its_direction_and_its_gradient(name: str) -> None:
    """Autograd makes zeros for outputs that have no gradient, unless it is told not to."""
    with Ledger(warm_process=True) as ledger:
        hidden = torch.empty(40_000, 64, dtype=torch.float16, device="meta", requires_grad=True)
        table = torch.empty(300, 64, device="meta", requires_grad=True)
        LOSSES[name](hidden, table, torch.zeros(40_000, dtype=torch.long, device="meta")).backward()
    sizes = [each.requested_bytes for each in ledger.trace.allocations]
    assert sizes.count(2 * 64 * 40_000) == 3
