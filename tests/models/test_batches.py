"""Batches against a loop over sequences, and the bound on the fullest batch against shuffled epochs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from paths import SHARED
from sequences import some_batch

from srsplan.models.data.batches import (
    Packed,
    TrainBatches,
    fullest_batch_tokens,
    history_batches,
    last_items,
    longest_input,
    passes,
)
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Sequences, split
from srsplan.models.errors import InputError


def sequences(lengths: list[int]) -> Sequences:
    """The k-th holds 1000 k + 1, 1000 k + 2, ..."""
    items = [1000 * row + place for row, length in enumerate(lengths) for place in range(1, length + 1)]
    return Sequences(np.cumsum([0, *lengths], dtype=np.int64), np.array(items, dtype=np.int32))


def expected(row: int, length: int, longest: int) -> list[int]:
    return [1000 * row + place for place in range(1, length + 1)][-longest:]


def lists(batch: Packed, values: NDArray[np.int64] | None = None) -> list[list[int]]:
    """The sequences of a batch, or other values of its tokens."""
    values = batch.items if values is None else values
    return [row.tolist() for row in np.split(values, batch.offsets[1:-1])]


@pytest.mark.parametrize("longest", [1, 3, 5, 100])
def test_the_last_items_stand_one_after_another(longest: int) -> None:
    lengths = [4, 1, 7, 2]
    rows = np.array([3, 0, 2])
    found = last_items(sequences(lengths), rows, longest)
    assert lists(found) == [expected(row, lengths[row], longest) for row in rows.tolist()]
    assert lists(found, found.positions) == [list(range(min(lengths[row], longest))) for row in rows.tolist()]
    assert found.items.dtype == found.offsets.dtype == np.int64
    assert len(found) == 3


@pytest.mark.parametrize(("batch_size", "seq_len"), [(1, 3), (4, 5), (7, 2), (100, 100)])
def test_an_epoch_holds_every_sequence_once_shifted_by_one(batch_size: int, seq_len: int) -> None:
    lengths = [2, 9, 1, 4, 6, 3, 2, 12, 5]
    batches = TrainBatches(sequences(lengths), batch_size, seq_len, seed=0)
    found = []
    epoch = list(batches.epoch(0))
    for batch in epoch:
        assert batch.items.dtype == batch.targets.dtype == np.int64
        assert batch.longest == max(map(len, lists(batch)))
        found += list(zip(lists(batch), lists(batch, batch.targets), strict=True))
    wanted = [expected(row, length, seq_len + 1) for row, length in enumerate(lengths) if length > 1]
    assert sorted(found) == sorted((row[:-1], row[1:]) for row in wanted)
    assert len(batches) == len(epoch) == -(-8 // batch_size)
    assert [len(batch) for batch in epoch[:-1]] == [batch_size] * (len(epoch) - 1)


def test_epochs_differ_and_repeat() -> None:
    train = sequences([3] * 50)

    def order(seed: int, index: int) -> list[int]:
        return [
            int(row)
            for batch in TrainBatches(train, 8, 2, seed).epoch(index)
            for row in batch.items[batch.offsets[:-1]]
        ]

    assert order(0, 5) == order(0, 5)
    assert len({tuple(order(seed, index)) for seed in (0, 1) for index in (0, 1)}) == 4


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 14), st.integers(1, 40))
def test_histories_come_in_order_and_fill_the_limits(lengths: list[int], users: int, seq_len: int, tokens: int) -> None:
    """Users in order, each with the last items of its history; no batch could have held one user more."""
    taken: list[list[int]] = []
    for rows, histories in history_batches(sequences(lengths), users, seq_len, tokens):
        assert rows.start == len(taken)
        assert rows.stop - rows.start == len(histories) <= users
        assert len(histories.items) <= tokens or len(histories) == 1
        taken += lists(histories)
        if rows.stop < len(lengths) and len(histories) < users:
            assert len(histories.items) + min(lengths[rows.stop], seq_len) > tokens
    assert taken == [expected(row, length, seq_len) for row, length in enumerate(lengths)]


def most_of_epochs(tokens: NDArray[np.int64], batch_size: int, epochs: int) -> int:
    random = np.random.default_rng(0)
    starts = np.arange(0, len(tokens), batch_size)
    return max(int(np.add.reduceat(random.permutation(tokens), starts).max()) for _ in range(epochs))


@pytest.mark.evidence
@pytest.mark.parametrize("name", ["ml-100k.inter", "video.txt"])
@pytest.mark.parametrize(("batch_size", "seq_len"), [(4, 32), (32, 200), (256, 32), (256, 200)])
def test_no_batch_of_200_epochs_exceeds_the_bound(name: str, batch_size: int, seq_len: int) -> None:
    lengths = split(read_interactions(SHARED / "data" / name)).train.lengths
    tokens = np.clip(lengths - 1, 0, seq_len)
    bound = fullest_batch_tokens(lengths, batch_size, seq_len)
    most = most_of_epochs(tokens, batch_size, 200)
    assert most <= bound.fullest <= 1.6 * most
    assert bound.fullest <= np.sort(tokens)[-batch_size:].sum()
    assert bound.mean == pytest.approx(tokens.mean() * batch_size)


def test_one_long_sequence_among_short_ones_is_not_forgotten() -> None:
    """mean + 6 sigma says 34 tokens; the batch of the long one has 200."""
    lengths = np.append(np.full(2000, 3), 201)
    assert fullest_batch_tokens(lengths, 1, 200).fullest == 200
    assert fullest_batch_tokens(lengths, 4, 200).fullest == 200 + 3 * 2


def test_nearly_normal_sums_are_bounded_at_six_sigma() -> None:
    lengths = np.random.default_rng(0).integers(2, 101, 50_000)
    tokens = lengths - 1
    six_sigma = tokens.mean() * 512 + 6 * tokens.std() * np.sqrt(512)
    assert fullest_batch_tokens(lengths, 512, 200).fullest == pytest.approx(six_sigma, rel=0.005)


def test_bounds_of_equal_few_and_no_sequences() -> None:
    equal = fullest_batch_tokens(np.full(1000, 11), 64, 200)
    assert (equal.fullest, equal.mean) == (640, 640.0)
    few = fullest_batch_tokens(np.array([3, 1, 5]), 64, 200)
    assert (few.fullest, few.mean) == (6, 6.0)
    assert fullest_batch_tokens(np.array([1, 1]), 64, 200).fullest == 0
    # sequences of one item are never drawn
    assert fullest_batch_tokens(np.array([3, 1, 5, 1]), 1, 200).mean == 3.0


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(12, 60), st.integers(1, 20))
def test_passes_are_the_batch_in_order_and_as_few_as_can_be(lengths: list[int], tokens: int, sequences: int) -> None:
    """Cut between sequences, within both limits; a pass could not have held the next one's first sequence."""
    whole = some_batch(lengths, 1000)
    found = list(passes(whole, tokens, sequences))
    for each in found:
        assert len(each.items) == len(each.targets) == each.offsets[-1] <= tokens
        assert 1 <= len(each) <= sequences
        assert each.offsets[0] == 0
    for each, following in pairwise(found):
        assert len(each) == sequences or len(each.items) + len(lists(following)[0]) > tokens
    assert [row for each in found for row in lists(each)] == lists(whole)
    assert [row for each in found for row in lists(each, each.targets)] == lists(whole, whole.targets)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_sequence_that_exceeds_a_pass_is_refused(place: int) -> None:
    lengths = [3, 1, 4, 2, 4]
    lengths[place] = 6
    with pytest.raises(ValueError, match="a sequence of 6 does not fit 5 tokens"):
        list(passes(some_batch(lengths, 10), 5, 9))


def test_longest_input_is_the_longest_sequence_of_an_epoch() -> None:
    lengths = [2, 9, 1, 4]
    for seq_len in (3, 8, 50):
        longest = max(batch.longest for batch in TrainBatches(sequences(lengths), 2, seq_len, 0).epoch(0))
        assert longest_input(np.array(lengths), seq_len) == longest
    assert longest_input(np.array([], dtype=np.int64), 5) == 0


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size 0"):
        TrainBatches(sequences([3]), 0, 5, 0)
    with pytest.raises(InputError, match="seq_len -1"):
        fullest_batch_tokens(np.array([3]), 4, -1)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(2, 6), min_size=1, max_size=20), batch_size=st.integers(1, 6), osf=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_after_the_oversampling_factor_mini_batches_come_again(
    lengths: list[int], batch_size: int, osf: int, seed: int
) -> None:
    """The first epochs are those of any run; later ones hold their batches, none twice, with the draws they had."""
    whole, again = (TrainBatches(sequences(lengths), batch_size, 6, seed, osf=each) for each in (None, osf))
    stored: dict[int, list[list[int]]] = {}
    for index in range(osf):
        for batch, same in zip(whole.epoch(index), again.epoch(index), strict=True):
            assert batch.draw == same.draw == len(stored)
            assert lists(batch, batch.targets) == lists(same, same.targets)
            stored[len(stored)] = lists(batch)
    for index in range(osf, osf + 3):
        found = list(again.epoch(index))
        assert len(found) == len(again) == len({batch.draw for batch in found})
        assert all(stored[batch.draw or 0] == lists(batch) for batch in found)
        assert [batch.draw for batch in found] == [batch.draw for batch in again.epoch(index)]


def test_later_epochs_mix_the_stored_ones_and_differ() -> None:
    """Each takes batches of every stored epoch, in an order of its own."""
    batches = TrainBatches(sequences([3] * 400), 4, 6, seed=1, osf=3)
    epochs = [[batch.draw or 0 for batch in batches.epoch(index)] for index in (3, 4)]
    assert epochs[0] != epochs[1]
    for draws in epochs:
        assert draws != sorted(draws)
        assert {draw // len(batches) for draw in draws} == {0, 1, 2}
