"""A batch that is cut into passes has the loss and the gradients of the batch in one call, whatever the cuts."""

from __future__ import annotations

import triton_interpreter  # noqa: F401 - first, so that triton interprets

# isort: split
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from srsplan.kernels import Sampling, cce, cce_neg, ce_neg, chunking
from srsplan.kernels.block_softmax.grid import most_negatives
from srsplan.kernels.chunking import Windows, set_count
from srsplan.kernels.dispatch import LossCall, LossOptions, choose
from srsplan.kernels.losses import ADAPTIVE, FROM_BATCH, LOSSES, MIXED, Sampler
from srsplan.kernels.sampled_softmax.api import cce_neg_triton
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.samplers.alias_table import Distribution, popularity
from srsplan.kernels.samplers.blocks import block_draw
from srsplan.kernels.samplers.draw import draw_items
from srsplan.kernels.samplers.in_batch import InBatch, in_batch
from srsplan.profiler.memory.ledger import Ledger

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
KEPT = 3
"""Negatives that adaptive samplers keep of what they draw."""
COMBINATIONS = [(loss.name, sampler) for loss in LOSSES.values() if not loss.bucketed for sampler in loss.samplers]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sets to a window, so that small batches have several."""
    monkeypatch.setattr(chunking, "SETS_PER_WINDOW", 3)


several = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Batch:
    """hidden [N, D], table [V, D], targets [N], and tokens at which passes begin and end, 0 and N among them."""

    hidden: Tensor
    table: Tensor
    targets: Tensor
    cuts: tuple[int, ...]

    @classmethod
    def make(cls, tokens: int, catalog: int, dim: int, cuts: tuple[int, ...], seed: int = 0) -> Batch:
        torch.manual_seed(seed)
        edges = sorted({0, tokens, *(cut % tokens for cut in cuts)})
        hidden, table = torch.randn(tokens, dim), torch.randn(catalog, dim) * 0.3
        return cls(hidden, table, torch.randint(catalog, (tokens,)), tuple(edges))

    def whole(self) -> Batch:
        return replace(self, cuts=(0, len(self.targets)))

    def run(self, call: LossCall, in_place: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over passes as a training step takes them: loss, gradient of hidden, gradient of the table.

        `in_place`: the scale of a gradient scaler, for passes that are told their incoming gradient.
        """
        hidden, table = (each.clone().requires_grad_() for each in (self.hidden, self.table))
        count, total, scale = len(self.targets), torch.zeros(()), in_place or 1.0
        for first, last in pairwise(self.cuts):
            share = (last - first) / count
            promised = None if in_place is None else torch.tensor(scale * share)
            each = call.at(5, first, count, backward_scale=promised)
            loss = each(hidden[first:last], table, self.targets[first:last], self.targets) * share
            (loss * scale).backward()
            total += loss.detach()
        assert hidden.grad is not None
        assert table.grad is not None
        return total, hidden.grad / scale, table.grad / scale


def close(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float = 1e-5) -> bool:
    return all(
        float((a.double() - b.double()).norm()) <= tolerance * max(1e-3, float(b.double().norm()))
        for a, b in zip(found, truth, strict=True)
    )


def call_of(loss: str, sampler: str, batch: Batch, negatives: int, group: int, device: torch.device = CPU) -> LossCall:
    kind = LOSSES[loss]
    options = LossOptions(
        negatives=kind.usual_negatives or (negatives if kind.sampled else None),
        sampling=Sampling(tokens_per_set=group, seed=3, hardest=KEPT if sampler in ADAPTIVE else None),
        compute_dtype=torch.float32,
        in_batch=sampler in FROM_BATCH,
        in_batch_share=0.3 if sampler in MIXED else None,
        distribution=popularity(np.arange(len(batch.table)), 0.75) if sampler == "popularity" else None,
    )
    return choose(loss, device, "triton" if device == CUDA else "auto", options, dim=batch.table.shape[1])


def drawn(
    negatives: int, catalog: int, sampling: Sampling, number: int, drawn_by: Distribution | InBatch | None
) -> Tensor:
    """The items of one set of the batch, by another way than the loss takes."""
    if drawn_by is None and sampling.hardest is None:
        return block_draw(min(negatives, most_negatives(catalog)), catalog, sampling).items(number, 1, CPU)[0]
    return draw_items((1, negatives), catalog, sampling, number, CPU, drawn_by)[0]


batches = st.builds(
    Batch.make,
    tokens=st.integers(1, 60),
    catalog=st.integers(2, 50),
    dim=st.sampled_from([1, 8, 24]),
    cuts=st.lists(st.integers(0, 59), max_size=5).map(tuple),
    seed=st.integers(0, 99),
)


@pytest.mark.parametrize(("loss", "sampler"), COMBINATIONS)
@several
@given(batch=batches, negatives=st.integers(1, 9), group=st.sampled_from([1, 2, 5, 32]), chunk=st.integers(1, 8))
def test_passes_add_up_to_the_batch(
    loss: str, sampler: str, batch: Batch, negatives: int, group: int, chunk: int
) -> None:
    call = call_of(loss, sampler, batch, negatives, group)
    whole = batch.whole().run(call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "sampled_chunk_sets", lambda *sizes: chunk)
        assert close(batch.run(call), whole)
        if call.loss.chunked:
            assert close(batch.run(call, in_place=1.0), whole)
            assert close(batch.run(call, in_place=65536.0), whole)


@several
@given(
    batch=batches,
    negatives=st.integers(1, 9),
    group=st.integers(1, 40),
    sampler=st.sampled_from(LOSSES["cce-"].samplers),
)
def test_the_batch_is_the_definition(batch: Batch, negatives: int, group: int, sampler: Sampler) -> None:
    """Token by token in float64, with the negatives of the set that the documented rule puts it into."""
    call, count, catalog = call_of("cce-", sampler, batch, negatives, group), len(batch.targets), len(batch.table)
    drawn_by = call.source(batch.targets, catalog) if call.options.in_batch else call.options.distribution
    share = torch.full((catalog,), 1 / catalog) if drawn_by is None else drawn_by.log_prob.exp()
    windows = math.ceil(count / (group * 3))
    stride = math.ceil(count / (windows * group))
    sampling = replace(call.options.sampling, step=5)
    hidden, table = (each.double().requires_grad_() for each in (batch.hidden, batch.table))
    losses = []
    for token, target in enumerate(batch.targets.tolist()):
        number = token // (stride * group) * stride + token % stride
        items = drawn(negatives, catalog, sampling, number, drawn_by)
        kept = items[items != target]
        scores = (table @ hidden[token])[kept]
        weight = 1 / negatives if sampler in MIXED else (1 - share[target].double()) / max(1, len(kept))
        if sampler in ADAPTIVE:
            least = scores.sort(descending=True).values[:KEPT][-1:]
            scores = scores[scores >= least] if len(kept) else scores
        else:
            scores = scores + torch.log(weight / share[kept].double())
        positive = table[target] @ hidden[token]
        losses.append(torch.logsumexp(torch.cat([positive[None], scores]), 0) - positive)
    torch.stack(losses).mean().backward()
    assert hidden.grad is not None
    assert table.grad is not None
    assert close(batch.run(call), (torch.stack(losses).mean().detach(), hidden.grad, table.grad), 3e-5)


@pytest.mark.parametrize(("loss", "sampler"), [each for each in COMBINATIONS if LOSSES[each[0]].chunked])
@pytest.mark.parametrize(
    ("tokens", "group", "cuts"),
    [(37, 5, (7, 8, 30)), (23, 1, (9,)), (70, 32, (33,)), (18, 2, (3, 6, 12)), (5, 16, (2,))],
)
def test_passes_of_the_triton_kernels_add_up(
    loss: str, sampler: str, tokens: int, group: int, cuts: tuple[int, ...]
) -> None:
    batch = Batch.make(tokens, 41, 16, cuts)
    call = call_of(loss, sampler, batch, 19, group, CUDA)
    whole = batch.whole().run(call)
    assert close(batch.run(call), whole)
    if loss == "cce" or sampler != "uniform":  # items that are given are corrected as uniform ones
        return
    windows, sampling = Windows.of(tokens, group), replace(call.options.sampling, step=5)
    items = block_draw(19, 41, sampling).items(0, len(windows.sets(0, tokens)), CPU)
    number = [token // windows.tokens * windows.stride + token % windows.stride for token in range(tokens)]
    hidden, table = (each.clone().requires_grad_() for each in (batch.hidden, batch.table))
    value = ce_neg(hidden, table, batch.targets, items[number])
    value.backward()
    assert hidden.grad is not None
    assert table.grad is not None
    assert close(whole, (value.detach(), hidden.grad, table.grad))


@given(
    tokens=st.integers(1, 400), group=st.integers(1, 40), first=st.integers(0, 399), count=st.integers(0, 400),
    most=st.sampled_from([1, 2, 3, 7, 256]),
)  # fmt: skip
@several
def test_every_token_is_in_the_set_that_the_rule_says(
    tokens: int, group: int, first: int, count: int, most: int
) -> None:
    first %= tokens
    count = min(count, tokens - first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "SETS_PER_WINDOW", most)
        windows = Windows.of(tokens, group)
        sampling = Sampling(tokens_per_set=group, first_token=first, batch_tokens=tokens)
        assert sampling.windows(count) == windows
        sets = CallSets.of(3, sampling, count)
    assert 1 <= windows.stride <= most
    number = {
        token: token // windows.tokens * windows.stride + token % windows.stride
        for token in range(first, first + count)
    }
    members, everything = sets.members(sets.numbers, CPU), range(first, first + count)
    assert set(number.values()) <= set(sets.numbers)
    assert members.shape[0] == len(sets.numbers)
    assert members.shape[1] <= group
    found = {
        first + token: sets.numbers[row]
        for row, tokens_of_set in enumerate(members.tolist())
        for token in tokens_of_set
        if 0 <= token < count
    }
    assert found == number
    assert sorted(token for token in members.flatten().tolist() if 0 <= token < count) == list(range(count))
    if group == 1:
        assert sets.numbers == everything


@pytest.mark.parametrize(
    ("tokens", "group", "stride"),
    [(8192, 32, 256), (8193, 32, 129), (8000, 32, 250), (5, 32, 1), (0, 32, 1), (512, 1, 256), (1_638_400, 32, 256)],
)
def test_batches_of_up_to_8192_tokens_are_one_window(
    tokens: int, group: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "SETS_PER_WINDOW", 256)
    assert Windows.of(tokens, group) == Windows(stride=stride, tokens_per_set=group)
    assert tokens > 8192 or group == 1 or stride == max(1, set_count(tokens, group))


@pytest.mark.parametrize(("tokens", "sets"), [(10, 7), (3, 2), (5, 9), (12, 1)])
def test_rows_of_given_negatives_say_how_many_sets_there_are(tokens: int, sets: int) -> None:
    """Whether or not so many sets are needed: token n is in set n mod sets."""
    batch = Batch.make(tokens, 30, 16, ())
    items = torch.randint(30, (sets, 4))
    truth = ce_neg(batch.hidden, batch.table, batch.targets, items[torch.arange(tokens) % sets])
    for loss in (cce_neg, cce_neg_triton):
        torch.testing.assert_close(loss(batch.hidden, batch.table, batch.targets, items), truth)


def test_an_empty_place_of_a_set_is_scored_with_nobodys_hidden_state() -> None:
    """Token 2 overflows against the negatives of set 1, where it is not; the place that is free there is nobody's."""
    table = torch.zeros(4, 16, requires_grad=True)
    hidden = torch.zeros(3, 16, requires_grad=True)
    with torch.no_grad():
        hidden[2, 0], table[3, 0] = 3e38, 10
    cce_neg(hidden, table, torch.zeros(3, dtype=torch.long), torch.tensor([[1, 2], [3, 2]])).backward()
    for each in (hidden.grad, table.grad):
        assert each is not None
        assert each.isfinite().all()


def test_a_call_beyond_its_batch_is_refused() -> None:
    hidden, table, targets = torch.randn(5, 16), torch.randn(9, 16), torch.zeros(5, dtype=torch.long)
    for loss in (cce_neg, cce_neg_triton):
        with pytest.raises(ValueError, match="tokens 4 to 9 are beyond a batch of 8 tokens"):
            loss(hidden, table, targets, 3, sampling=Sampling(first_token=4, batch_tokens=8))
    with pytest.raises(ValueError, match="first_token -1 is negative"):
        Sampling(first_token=-1)
    with pytest.raises(ValueError, match="first_token 9 is beyond a batch of 8 tokens"):
        Sampling(first_token=9, batch_tokens=8)


def test_negatives_of_the_batch_are_shared_by_its_passes() -> None:
    """The targets of the batch, or what was made of them once; without either each call draws from its own."""
    batch = Batch.make(30, 40, 8, (11,))
    call = call_of("cce-", "in-batch", batch, 6, 5).at(2, 0, 30)
    part = (batch.hidden[:11], batch.table, batch.targets[:11])
    once = in_batch(batch.targets, 40)
    assert float(call(*part, batch.targets)) == float(call(*part, once))
    assert float(call(*part)) == float(call(*part, batch.targets[:11])) != float(call(*part, once))
    assert call_of("cce-", "in-batch", batch, 6, 5).at_step(2) == call_of("cce-", "in-batch", batch, 6, 5).at(2)


def fp32_tables(passes: int, loss: str, in_place: bool) -> int:
    """The [V, D] in fp32 that are alive at once, the table among them, when a batch is run in so many passes."""
    tokens, catalog, dim = 24, 5000, 48
    ledger = Ledger()
    with ledger:
        table = torch.nn.Parameter(torch.empty(catalog, dim, device=META))
        for number in range(passes):
            hidden = torch.empty(tokens, dim, device=META, requires_grad=True)
            targets = torch.empty(tokens, dtype=torch.long, device=META)
            call = choose(loss, META, "chunked", LossOptions(negatives=8))
            each = call.at(0, number * tokens, passes * tokens, backward_scale=1 / passes if in_place else None)
            ledger.phase("forward")
            value = each(hidden, table, targets) / passes
            ledger.phase("backward")
            value.backward()
    live = ledger.trace.peak().live
    return sum(each.shape == (catalog, dim) and each.dtype == "torch.float32" for each in live)


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_passes_in_place_hold_one_gradient(loss: str) -> None:
    assert [fp32_tables(passes, loss, in_place=True) for passes in (1, 2, 5)] == [2, 2, 2]
    assert [fp32_tables(passes, loss, in_place=False) for passes in (1, 2)] == [2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_in_place_in_16_bit(loss: str, dtype: torch.dtype) -> None:
    """The scale of a gradient scaler is multiplied in fp32, where nothing overflows."""
    batch = Batch.make(60, 50, 24, (7, 30))
    call = call_of(loss, "uniform", batch, 9, 5)
    call = replace(call, options=replace(call.options, compute_dtype=dtype))
    assert close(batch.run(call, in_place=65536.0), batch.run(call), 1e-5)


def test_a_second_backward_adds_the_gradient_again() -> None:
    batch = Batch.make(20, 30, 8, ())
    hidden, table = (each.clone().requires_grad_() for each in (batch.hidden, batch.table))
    loss = cce(hidden, table, batch.targets, backward_scale=1.0)
    assert table.grad is not None
    once = table.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(table.grad, once)
    assert hidden.grad is not None
    first = hidden.grad.clone()
    loss.backward()
    torch.testing.assert_close(table.grad, 2 * once)
    torch.testing.assert_close(hidden.grad, 2 * first)


def test_evaluation_leaves_gradients_alone() -> None:
    batch = Batch.make(20, 30, 8, ())
    table = batch.table.clone().requires_grad_()
    with torch.no_grad():
        cce(batch.hidden, table, batch.targets, backward_scale=1.0)
    cce(batch.hidden.clone().requires_grad_(), batch.table, batch.targets, backward_scale=1.0).backward()
    assert table.grad is None
    assert batch.table.grad is None


@pytest.mark.parametrize("loss", [cce, lambda x, table, at, **options: cce_neg(x, table, at, 3, **options)])
def test_what_cannot_be_in_place_is_refused(loss: Callable[..., Tensor]) -> None:
    batch = Batch.make(20, 30, 8, ())
    hidden, leaf = (each.clone().requires_grad_() for each in (batch.hidden, batch.table))
    for table in (leaf * 1, leaf.detach().half().requires_grad_()):
        with pytest.raises(ValueError, match="needs an fp32 leaf"):
            loss(hidden, table, batch.targets, backward_scale=1.0)
    with pytest.raises(ValueError, match="reduction none"):
        loss(hidden, leaf, batch.targets, backward_scale=1.0, reduction="none")
    with pytest.raises(ValueError, match=r"backward_scale was 1, and the loss was scaled by 0\.5"):
        (loss(hidden, leaf, batch.targets, backward_scale=1.0) * 0.5).backward()
