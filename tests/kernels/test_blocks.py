"""Negatives in blocks: what is drawn, in PyTorch and in the Triton kernels, and the losses and gradients made of it."""

from __future__ import annotations

import os

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from srsplan.kernels import Sampling, ce_neg
from srsplan.kernels.block_softmax.call import BlockCall
from srsplan.kernels.block_softmax.grid import most_negatives
from srsplan.kernels.full_softmax.api import cce
from srsplan.kernels.sampled_softmax.api import cce_neg, cce_neg_triton
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.sampled_softmax.operators import Numbers
from srsplan.kernels.samplers.blocks import BlockDraw, block_draw
from srsplan.models.config import Configuration
from srsplan.profiler.memory.expressions import step_row

CPU = torch.device("cpu")
THOROUGH = "SRSPLAN_THOROUGH" in os.environ
"""Every shape in both types; else half of them in each."""
IGNORED = -100
# tokens, catalog, D, negatives, tokens a set: sizes that divide nothing
SHAPES = [
    (1, 33, 16, 1, 1), (5, 64, 16, 3, 1), (9, 50, 48, 7, 1), (37, 300, 112, 19, 16), (17, 101, 80, 32, 16),
    (130, 315, 16, 50, 32), (97, 200, 160, 9, 128), (70, 101, 48, 19, 33), (63, 377, 16, 170, 64),
    (60, 120, 32, 70, 2), (88, 147, 48, 45, 5), (300, 64, 16, 64, 32), (19, 399, 80, 23, 1), (40, 200, 256, 70, 32),
    (33, 200, 32, 190, 7), (7, 40, 96, 2, 2),
]  # fmt: skip


def drawn(catalog: int, negatives: int, step: int = 0, seed: int = 0) -> BlockDraw:
    return BlockDraw(catalog=catalog, negatives=negatives, seed=seed, step=step)


def numbers(catalog: int, negatives: int, seed: int, step: int, dtype: torch.dtype = torch.float32) -> BlockCall:
    sampling = Sampling(tokens_per_set=1, seed=seed, step=step)
    sets = CallSets.of(negatives, sampling, 40)
    return BlockCall(torch.zeros(40, 16, dtype=dtype), torch.zeros(catalog, 16), Numbers.of(sets, sampling, IGNORED))


@given(catalog=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), step=st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_the_order_holds_every_item_once(catalog: int, seed: int, step: int) -> None:
    places = torch.arange(catalog)
    order = drawn(catalog, 1, step, seed).permuted(places.clone())
    assert torch.equal(order.sort().values, places)


@pytest.mark.parametrize("catalog", [33, 64, 1000, 1023, 1024, 23_715])
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 123), (2**62 + 1, 2**33)])
def test_the_kernels_draw_what_pytorch_draws(catalog: int, seed: int, step: int) -> None:
    """The step's order, and where in it the targets are: V for one that is ignored."""
    call, draw = numbers(catalog, 20, seed, step), drawn(catalog, 20, step, seed)
    order = call.order()
    assert torch.equal(order.long(), draw.permuted(torch.arange(catalog)))
    targets = torch.cat([torch.arange(0, catalog, max(1, catalog // 37)), torch.tensor([IGNORED, catalog - 1])])
    places = call.places(targets)
    live = targets != IGNORED
    assert torch.equal(order[places[live].long()].long(), targets[live])
    assert places[~live].tolist() == [catalog]


@given(catalog=st.integers(1, 3000), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_set_holds_no_item_twice(catalog: int, data: st.DataObject) -> None:
    negatives, first = data.draw(st.integers(1, most_negatives(catalog))), data.draw(st.integers(0, 10**6))
    items = drawn(catalog, negatives, step=3).items(first, 5, CPU)
    assert items.shape == (5, negatives)
    assert items.min() >= 0
    assert items.max() < catalog
    assert all(len(row.unique()) == negatives for row in items)


def test_sets_are_the_same_however_they_are_asked_for() -> None:
    draw = drawn(1000, 70, step=9)
    whole = draw.items(0, 200, CPU)
    assert torch.equal(torch.cat([draw.items(0, 63, CPU), draw.items(63, 137, CPU)]), whole)
    assert not torch.equal(drawn(1000, 70, step=10).items(0, 200, CPU), whole)
    assert not torch.equal(drawn(1000, 70, step=9, seed=1).items(0, 200, CPU), whole)


@pytest.mark.parametrize("form", [cce_neg, cce_neg_triton])
def test_more_negatives_than_items_are_all_items(form: Any) -> None:
    """Then the sampled softmax is the full one."""
    assert [most_negatives(catalog) for catalog in (1, 31, 63, 64, 1000)] == [1, 31, 32, 64, 992]
    with pytest.raises(ValueError, match="65 negatives of 64 items"):
        drawn(64, 65)
    for catalog in (1, 2, 20, 32, 64):
        hidden, table, targets = torch.randn(4, 16), torch.randn(catalog, 16), torch.arange(4) % catalog
        found = form(hidden, table, targets, 100, reduction="none")
        assert torch.allclose(found, cce(hidden, table, targets, reduction="none"), atol=1e-5), catalog


STEPS = 3000


@pytest.fixture(scope="module")
def small_draws() -> Tensor:
    """First three sets of many steps, with 40 negatives of 97 items: int64 [steps, 3, 40]."""
    return torch.stack([drawn(97, 40, step=step, seed=5).items(0, 3, CPU) for step in range(STEPS)])


def test_every_item_is_equally_likely(small_draws: Tensor) -> None:
    for number in range(3):
        counts = torch.bincount(small_draws[:, number].flatten(), minlength=97)
        # without replacement within a step: fewer differences than chance alone would make
        assert chisquare(counts.numpy()).statistic / (1 - 40 / 97) < 97 + 5 * np.sqrt(2 * 97)


def test_every_pair_within_a_set_is_equally_likely(small_draws: Tensor) -> None:
    """An expected count each, and none of the pairs far from it."""
    chosen = torch.zeros(STEPS, 97)
    chosen.scatter_(1, small_draws[:, 0], 1.0)
    pairs = (chosen.T @ chosen)[np.triu_indices(97, 1)]
    expected = STEPS * 40 * 39 / (97 * 96)
    deviations = (pairs - expected) / np.sqrt(expected * (1 - expected / STEPS))
    assert abs(float(deviations.mean())) < 0.02
    assert 0.9 < float(deviations.std()) < 1.1
    assert float(deviations.abs().max()) < 5


def test_no_two_sets_are_alike() -> None:
    """Sets share about as many blocks as independent ones would, within a wrap of the catalog and across two."""
    draw = drawn(1682, 512, step=4)
    assert (draw.blocks, draw.rounds) == (52, 16)
    taken = torch.zeros(104, 52).scatter_(1, draw.block_numbers(0, 104, CPU), 1.0)
    assert torch.equal(taken.sum(1), torch.full((104,), 16.0))
    assert torch.equal(taken[:52].sum(0), torch.full((52,), 16.0)), "a wrap takes every block equally often"
    common = (taken @ taken.T).fill_diagonal_(0)
    assert float(common.max()) < 14
    assert float(common[:52, 52:].mean()) == pytest.approx(16 * 16 / 52, abs=0.01)


def test_a_step_covers_more_of_the_catalog_than_independent_sets_would() -> None:
    """60 sets take 16 of 740 blocks each: over steps every block equally often, in one step few of them not at all."""
    taken = torch.cat([drawn(23_715, 512, step=step).block_numbers(0, 60, CPU).flatten() for step in range(100)])
    counts = torch.bincount(taken, minlength=740).double()
    assert chisquare(counts.numpy()).pvalue > 1e-3
    distinct = drawn(23_715, 512, step=1).items(0, 60, CPU).unique().numel()
    assert 1 - (1 - 16 / 740) ** 60 < 0.75 < distinct / 23_715


def test_neighbouring_slots_and_steps_are_unrelated() -> None:
    """Correlation of an item's number with the next slot's, the next set's, the next step's and the next seed's."""
    catalog, settings_ = 1_000_003, [(0, 0), (0, 1), (1, 0)]
    first, step, seed = (drawn(catalog, 64, *each).items(0, 400, CPU).double() for each in settings_)
    for one, other in [
        (first[:, :-1], first[:, 1:]), (first[:-1], first[1:]), (first, step), (first, seed),
        (first[:, :32], first[:, 32:]),
    ]:  # fmt: skip
        found = np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1]
        assert abs(found) < 5 / np.sqrt(one.numel())


def test_the_expected_sum_is_that_of_the_whole_catalog() -> None:
    """With the log-Q correction the mean over steps of exp(lse) is that of the full softmax."""
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(64, 16), torch.randn(500, 16) * 0.4, torch.randint(500, (64,))
    positive = (hidden * table[targets]).sum(1)
    full = torch.exp(cce(hidden, table, targets, reduction="none") + positive).double()
    sampled = torch.stack([
        torch.exp(cce_neg(hidden, table, targets, 96, sampling=Sampling(step=step), reduction="none") + positive)
        for step in range(400)
    ]).double()  # fmt: skip
    error = (sampled.mean(0) / full - 1) / (sampled.std(0) / full / np.sqrt(400))
    assert abs(float(error.mean())) < 1.5, "32 tokens share their negatives: their errors go together"
    assert float(error.abs().max()) < 5


def inputs(shape: tuple[int, ...], dtype: torch.dtype, table_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(sum(shape))
    tokens, catalog, dim, *_ = shape
    targets = torch.randint(catalog, (tokens,))
    targets[1::5] = IGNORED
    return torch.randn(tokens, dim).to(dtype), (torch.randn(catalog, dim) * 0.3).to(table_dtype), targets


def gradients(loss: Any, hidden: Tensor, table: Tensor, *arguments: Any, **options: Any) -> list[Tensor]:
    """(value, gradients) in float64."""
    x, y = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    value = loss(x, y, *arguments, **options)
    (value * torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    return [value.detach().double(), x.grad.double(), y.grad.double()]


def truth(shape: tuple[int, ...], sampling: Sampling, reduction: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The definition in float64, with the items that blocks of these sets hold."""
    hidden, table, targets = tensors
    tokens, catalog, _, negatives, _ = shape
    sets = CallSets.of(negatives, sampling, tokens)
    draw = block_draw(negatives, catalog, sampling)
    items = draw.items(sets.numbers.start, len(sets.numbers), CPU)
    of_token = torch.empty(tokens, negatives, dtype=torch.int64)
    for members, row in zip(sets.members(sets.numbers, CPU), items, strict=True):
        of_token[members[(members >= 0) & (members < tokens)]] = row
    return gradients(
        ce_neg, hidden.double(), table.double(), targets, of_token, reduction=reduction, ignore_index=IGNORED,
        sampling=Sampling(tokens_per_set=1, log_q=sampling.log_q),
    )  # fmt: skip


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize(("number", "shape"), [*enumerate(SHAPES)][:: 1 if THOROUGH else 2], ids=str)
@pytest.mark.parametrize("form", [cce_neg, cce_neg_triton])
def test_fp32_equals_the_definition(form: Any, number: int, shape: tuple[int, ...]) -> None:
    """Every other shape with reduction none and without the log-Q correction."""
    reduction = ("mean", "none")[number % 2]
    sampling = Sampling(tokens_per_set=shape[4], seed=4, step=11, log_q=reduction == "mean")
    tensors = inputs(shape, torch.float32, torch.float32)
    found = gradients(form, *tensors, shape[3], sampling=sampling, reduction=reduction)
    assert max(errors(found, truth(shape, sampling, reduction, tensors))) < 1e-5


@pytest.mark.parametrize(("number", "shape"), [*enumerate(SHAPES)][not THOROUGH :: 1 if THOROUGH else 2], ids=str)
def test_fp16_is_within_a_thousandth(number: int, shape: tuple[int, ...]) -> None:
    """With tables in both types."""
    table_dtype = (torch.float16, torch.float32)[number // 2 % 2]
    sampling = Sampling(tokens_per_set=shape[4], seed=4, step=11)
    tensors = inputs(shape, torch.float16, table_dtype)
    found = gradients(cce_neg_triton, *tensors, shape[3], sampling=sampling)
    assert max(errors(found, truth(shape, sampling, "mean", tensors))) < 1e-3


@pytest.mark.parametrize(("first", "tokens"), [(37, 100), (290, 10)])
def test_a_part_of_a_batch_has_the_negatives_of_the_batch(first: int, tokens: int) -> None:
    """Calls over parts, one after another: their losses are those of one call."""
    shape = (300, 400, 32, 70, 8)
    tensors = inputs(shape, torch.float32, torch.float32)
    hidden, table, targets = tensors
    part, whole = slice(first, first + tokens), Sampling(tokens_per_set=8, seed=4, step=2)
    sampling = Sampling(tokens_per_set=8, seed=4, step=2, first_token=first, batch_tokens=300)
    expected = cce_neg(hidden, table, targets, 70, sampling=whole, reduction="none")[part]
    found = gradients(cce_neg_triton, hidden[part], table, targets[part], 70, sampling=sampling, reduction="none")
    assert torch.allclose(found[0].float(), expected, atol=1e-5)
    chunked = gradients(cce_neg, hidden[part], table, targets[part], 70, sampling=sampling, reduction="none")
    assert max(errors(found, chunked)) < 1e-5


def test_a_token_that_is_well_fitted_keeps_its_gradient_in_fp16() -> None:
    """What its probability lacks of 1 is 1e-7 to 1e-3: it is weighted, by a loss scale too, before it is rounded."""
    hidden, table, targets = inputs((8, 64, 16, 32, 8), torch.float16, torch.float16)
    hidden, targets = torch.nn.functional.normalize(hidden.float(), dim=1) * 3, torch.arange(8)
    table[:8] = hidden * torch.linspace(0.6, 1.6, 8)[:, None]
    table[8:] *= 0.1
    hidden = hidden.half()
    sampling = Sampling(tokens_per_set=8, step=1)

    def scaled(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        return cce_neg_triton(hidden, table, targets, 32, sampling=sampling, reduction="none") * 2.0**12

    found = gradients(scaled, hidden, table, targets)
    expected = [each * 2.0**12 for each in truth((8, 64, 16, 32, 8), sampling, "none", (hidden, table, targets))]
    assert float(expected[0].min()) < 2.0**12 * 2e-4
    assert float(((found[1] - expected[1]).norm(dim=1) / expected[1].norm(dim=1)).max()) < 2e-3


def test_a_seed_in_memory_is_read_when_the_kernels_run() -> None:
    """As a replayed CUDA graph does: nothing changes but what the tensors hold."""
    hidden, table, targets = inputs((40, 200, 16, 40, 8), torch.float32, torch.float32)
    seed, step = torch.tensor(4), torch.tensor(11)
    loaded = Sampling(tokens_per_set=8, seed=seed, step=step)
    for numbers_ in ((4, 11), (4, 12), (2**40, 3)):
        seed.fill_(numbers_[0])
        step.fill_(numbers_[1])
        told = Sampling(tokens_per_set=8, seed=numbers_[0], step=numbers_[1])
        found, expected = (
            gradients(cce_neg_triton, hidden, table, targets, 40, sampling=each) for each in (loaded, told)
        )
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="tensors are for the Triton kernels"):
        cce_neg(hidden, table, targets, 40, sampling=loaded)


def test_runs_are_bitwise_equal_and_frozen_inputs_have_no_gradient() -> None:
    hidden, table, targets = inputs((130, 40, 32, 32, 8), torch.float16, torch.float32)
    sampling = Sampling(tokens_per_set=8)
    runs = [gradients(cce_neg_triton, hidden, table, targets, 30, sampling=sampling) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    for frozen in (0, 1):
        pair = [each.clone().requires_grad_(number != frozen) for number, each in enumerate((hidden, table))]
        cce_neg_triton(pair[0], pair[1], targets, 30, sampling=sampling, reduction="none").backward(
            torch.linspace(0.5, 1.5, 130)
        )
        learned = pair[1 - frozen].grad
        assert pair[frozen].grad is None
        assert learned is not None
        assert torch.equal(
            learned.double(),
            gradients(cce_neg_triton, hidden, table, targets, 30, sampling=sampling, reduction="none")[2 - frozen],
        )


def test_nothing_to_learn_from() -> None:
    """No tokens, and no target that counts: a loss of 0 and gradients of 0."""
    for tokens in (0, 6):
        hidden, table = torch.randn(tokens, 16, requires_grad=True), torch.randn(70, 16, requires_grad=True)
        loss = cce_neg_triton(hidden, table, torch.full((tokens,), IGNORED), 20)
        loss.backward()
        assert hidden.grad is not None
        assert table.grad is not None
        assert (float(loss.detach()), float(hidden.grad.abs().sum()), float(table.grad.abs().sum())) == (0.0, 0.0, 0.0)


def test_memory_is_planned_for_the_negatives_that_are_drawn() -> None:
    """Of 100 items whole blocks hold 96, whatever is asked for; drawn by weights it is what is asked for."""
    asked = Configuration(loss="cce-", catalog=100, batch_size=8, seq_len=10, negatives=99, tokens_per_set=4)
    assert drawn(100, 96).items(0, 1, CPU).shape[1] == step_row(asked)["n"] == 96
    assert step_row(replace(asked, sampler="popularity"))["n"] == 99
