"""Chunked ranking against a plain stable sort of the whole catalog, and in 16 bit against fp32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sequences import on_cpu, some_lengths
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.models.config import Architecture, Configuration
from srsplan.models.training import ranking
from srsplan.models.training.ranking import NOTHING, Seen, rank, rank_hidden, rank_scored, seen_items
from srsplan.models.training.step import DTYPES, TrainingStep

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """Whole-numbered scores of a few values, so that most are equal, and pairs that are not recommended again."""

    scores: NDArray[np.int64]
    filtered: NDArray[np.bool_]
    best: int
    chunk: int

    @property
    def hidden(self) -> Tensor:
        return torch.eye(len(self.scores))

    @property
    def table(self) -> Tensor:
        return torch.from_numpy(self.scores.T.copy()).float()

    def seen(self, users: slice = slice(None)) -> Seen:
        rows, items = np.nonzero(self.filtered[users])
        return seen_items(rows, items, self.scores.shape[1], self.chunk, CPU)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    users, catalog = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0, 1, 3, 50]))
    scores = random.integers(-spread, spread + 1, (users, catalog))
    filtered = random.random((users, catalog)) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    return Case(scores, filtered, draw(st.integers(1, catalog)), draw(st.integers(1, catalog + 3)))


def sorted_catalog(scores: NDArray[np.int64], filtered: NDArray[np.bool_], best: int) -> list[list[int]]:
    """Python's own stable sort, one user after another."""
    rows = []
    for user_scores, gone in zip(scores.tolist(), filtered.tolist(), strict=True):
        left = [item for item in range(len(user_scores)) if not gone[item]]
        order = sorted(left, key=lambda item: -user_scores[item])[:best]
        rows.append(order + [NOTHING] * (best - len(order)))
    return rows


@given(cases())
def test_equal_to_a_stable_sort_of_the_whole_catalog(case: Case) -> None:
    found = rank_hidden(case.hidden, case.table, case.seen(), case.best)
    assert found.tolist() == sorted_catalog(case.scores, case.filtered, case.best)


@given(cases())
def test_one_user_at_a_time_gives_the_same(case: Case) -> None:
    """The other users of the batch, and the chunk size that their number leads to, change nothing."""
    rows = [
        rank_hidden(case.hidden[[user]], case.table, case.seen(slice(user, user + 1)), case.best)
        for user in range(len(case.scores))
    ]
    together = rank_hidden(case.hidden, case.table, case.seen(), case.best)
    assert torch.equal(torch.cat(rows), together)


VALUES = (-np.inf, -3e38, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3e38, np.inf)


@given(
    seed=st.integers(0, 2**32), users=st.integers(1, 3), catalog=st.integers(1, 90), best=st.integers(1, 12),
    group=st.integers(1, 6), chunk=st.integers(1, 100), few=st.integers(1, len(VALUES)),
)  # fmt: skip
def test_groups_of_items_change_nothing(
    seed: int, users: int, catalog: int, best: int, group: int, chunk: int, few: int
) -> None:
    """On a CPU the best groups of neighbours are looked into alone: ties, infinities and both zeros come out in order.

    The model is a table of one column, so that the scores are exactly the values.
    """
    random = np.random.default_rng(seed)
    table = random.choice(random.choice(VALUES, few), catalog).astype(np.float32)
    gone = random.random((users, catalog)) < random.choice([0.0, 0.1, 0.9])
    rows, items_gone = np.nonzero(gone)
    seen = seen_items(rows, items_gone, catalog, chunk, CPU)
    best = min(best, catalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "GROUP_ITEMS", group)
        patch.setattr(ranking, "LEAST_SHARE", 1)
        items, scores = rank_scored(torch.ones(users, 1), torch.from_numpy(table)[:, None], seen, best)
    for row, found, scored in zip(gone, items.tolist(), scores.tolist(), strict=True):
        left = [item for item in range(catalog) if not row[item] and table[item] > -np.inf]
        order = sorted(left, key=lambda item: -float(table[item]))[:best]
        assert found == order + [NOTHING] * (best - len(order))
        assert scored == [*table[order].tolist(), *[-np.inf] * (best - len(order))]


def test_groups_are_used_for_a_large_catalog_and_a_buffer_is_used_again() -> None:
    """Scores of 5 values: most of the best 10 are decided by the index, across groups, chunks and what is left over."""
    random = torch.Generator().manual_seed(0)
    table = torch.randint(-2, 3, (9_000, 1), generator=random).float()
    table[2_990], table[8_990] = 5.0, -5.0  # behind the last whole group of a chunk
    hidden, seen = torch.tensor([[1.0], [-2.0]]), seen_items(np.array([0, 1]), np.array([7, 8_999]), 9_000, 3_000, CPU)
    scratch = torch.full((2 * 3_000,), torch.nan)
    for _ in range(2):
        items, scores = rank_scored(hidden, table, seen, 10, scratch)
        expected = (hidden @ table.t()).index_put((torch.tensor([0, 1]), torch.tensor([7, 8_999])), torch.tensor(-9.0))
        order = expected.sort(dim=1, descending=True, stable=True)
        assert torch.equal(items, order.indices[:, :10])
        assert torch.equal(scores, order.values[:, :10])
        hidden = hidden.flip(0)


def test_zeros_of_either_sign_are_equal_and_order_is_that_of_numbers() -> None:
    tiny = 1e-30  # so that the product of two of them is too small for fp32: a zero that keeps its sign
    table = torch.tensor([[-tiny], [0.0], [-2.5], [1e-5], [-1e-5], [torch.inf], [-torch.inf], [3e38]])
    assert rank_hidden(torch.full((4, 1), tiny), table, None, 8).tolist() == [[5, 7, 3, 0, 1, 4, 2, NOTHING]] * 4


def test_zeros_of_either_sign_are_equal_among_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "GROUP_ITEMS", 2)
    tiny = torch.full((4, 1), 1e-30)
    table = torch.tensor([0, -1, -1, -1, 0, 1, -1, 0, *[-1] * 30])[:, None] * 1e-30
    scores = tiny @ table.t()
    assert not scores.any()
    assert set(torch.copysign(torch.ones(()), scores).flatten().tolist()) == {-1.0, 1.0}
    items, found = rank_scored(tiny, table, None, 4)
    assert items.tolist() == [[0, 1, 2, 3]] * 4
    assert torch.copysign(torch.ones(()), found).tolist() == [[1.0] * 4] * 4


def test_a_user_with_three_unseen_items_gets_three() -> None:
    seen = seen_items(np.zeros(9, int), np.arange(9), 12, 12, CPU)
    found = rank_hidden(torch.randn(1, 8), torch.randn(12, 8), seen, 10)
    assert sorted(found[0, :3].tolist()) == [9, 10, 11]
    assert found[0, 3:].tolist() == [NOTHING] * 7


def test_without_filter_every_item_is_ranked() -> None:
    hidden, table = torch.randn(5, 8), torch.randn(100, 8)
    found = rank_hidden(hidden, table, seen_items(np.zeros(0, int), np.zeros(0, int), 100, 7, CPU), 100)
    assert torch.equal(found, (hidden @ table.t()).sort(1, descending=True).indices)
    assert torch.equal(rank_hidden(hidden, table, None, 100), found)


def test_an_empty_catalog_is_refused() -> None:
    with pytest.raises(ValueError, match="empty catalog"):
        rank_hidden(torch.ones(1, 4), torch.ones(0, 4), None, 2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("inside", [False, True], ids=["called alone", "called within autocast"])
def test_a_model_in_16_bit_is_ranked_in_fp32(precision: str, inside: bool) -> None:
    """Of 20,000 items many have equal 16-bit scores: the top 10 are those of float64 scores of the same states."""
    torch.manual_seed(2)
    sizes = Architecture(dim=16, blocks=1, heads=1)
    configuration = Configuration(loss="cce", catalog=20_000, batch_size=4, seq_len=6, architecture=sizes)
    model = TrainingStep(configuration, CPU).model.eval()
    lengths = some_lengths(32, 6)
    histories, last = on_cpu([torch.randint(20_000, (n,)).tolist() for n in lengths]), np.cumsum(lengths) - 1

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=DTYPES[precision])

    if inside:
        with autocast():
            found = rank(model, histories, None, 10)
    else:
        found = rank(model, histories, None, 10, autocast)
    with torch.no_grad(), autocast():
        hidden = model(histories)[last]
    scores = hidden.double() @ model.item_table.detach().double().t()
    assert torch.equal(found, scores.topk(10, dim=1).indices)
    rounded = hidden.to(DTYPES[precision]) @ model.item_table.detach().to(DTYPES[precision]).t()
    assert not torch.equal(found, rounded.topk(10, dim=1).indices)


def test_a_chunk_of_scores_stays_small() -> None:
    for users in (1, 64, 1024):
        for catalog in (10, 1_000_000, 100_000_000):
            chunk = chunking.ranking_chunk_items(users, catalog)
            assert 1 <= chunk <= catalog
            assert users * chunk <= chunking.RANKING_CHUNK_ELEMENTS
