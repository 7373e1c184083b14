"""Batches against a loop over sequences, and the bound on the fullest batch against shuffled epochs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import SHARED

from srsplan.models.data.batches import TrainBatches, cut, fullest_batch_tokens, history_batches, longest_input, padded
from srsplan.models.data.interactions import read_interactions
from srsplan.models.data.splits import Sequences, split
from srsplan.models.errors import InputError


def sequences(lengths: list[int]) -> Sequences:
    """The k-th holds 1000 k + 1, 1000 k + 2, ..."""
    items = [1000 * row + place for row, length in enumerate(lengths) for place in range(1, length + 1)]
    return Sequences(np.cumsum([0, *lengths], dtype=np.int64), np.array(items, dtype=np.int32))


def expected(row: int, length: int, longest: int) -> list[int]:
    return [1000 * row + place for place in range(1, length + 1)][-longest:]


@pytest.mark.parametrize("longest", [1, 3, 5, 100])
def test_padded_takes_the_last_items_and_pads_right(longest: int) -> None:
    lengths = [4, 1, 7, 2]
    rows = np.array([3, 0, 2])
    found = padded(sequences(lengths), rows, longest)
    lists = [expected(row, lengths[row], longest) for row in rows.tolist()]
    width = max(map(len, lists))
    assert found.tolist() == [row + [0] * (width - len(row)) for row in lists]
    assert found.dtype == np.int64


@pytest.mark.parametrize(("batch_size", "seq_len"), [(1, 3), (4, 5), (7, 2), (100, 100)])
def test_an_epoch_holds_every_sequence_once_shifted_by_one(batch_size: int, seq_len: int) -> None:
    lengths = [2, 9, 1, 4, 6, 3, 2, 12, 5]
    batches = TrainBatches(sequences(lengths), batch_size, seq_len, seed=0)
    found = []
    epoch = list(batches.epoch(0))
    for batch in epoch:
        assert batch.inputs.dtype == batch.targets.dtype == np.int64
        assert batch.inputs.shape == batch.targets.shape
        assert ((batch.inputs == 0) == (batch.targets == 0)).all()
        assert (batch.targets > 0).any(axis=0).all()
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            valid = sum(target > 0 for target in targets)
            found.append((inputs[:valid], targets[:valid]))
    wanted = [expected(row, length, seq_len + 1) for row, length in enumerate(lengths) if length > 1]
    assert sorted(found) == sorted((row[:-1], row[1:]) for row in wanted)
    assert len(batches) == len(epoch) == -(-8 // batch_size)
    assert [len(batch.inputs) for batch in epoch[:-1]] == [batch_size] * (len(epoch) - 1)


def test_epochs_differ_and_repeat() -> None:
    train = sequences([3] * 50)

    def order(seed: int, index: int) -> list[int]:
        return [int(row) for batch in TrainBatches(train, 8, 2, seed).epoch(index) for row in batch.inputs[:, 0]]

    assert order(0, 5) == order(0, 5)
    assert len({tuple(order(seed, index)) for seed in (0, 1) for index in (0, 1)}) == 4


@pytest.mark.parametrize(("batch_size", "seq_len"), [(2, 3), (3, 100)])
def test_histories_come_in_order_with_their_last_position(batch_size: int, seq_len: int) -> None:
    lengths = [4, 1, 7, 2, 2]
    taken = []
    for rows, inputs, last in history_batches(sequences(lengths), batch_size, seq_len):
        for row, items, position in zip(range(rows.start, rows.stop), inputs.tolist(), last.tolist(), strict=True):
            taken.append(row)
            assert items[: position + 1] == expected(row, lengths[row], seq_len)
            assert not any(items[position + 1 :])
    assert taken == list(range(5))


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


@pytest.mark.parametrize(("parts", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (7, [1] * 7)])
def test_micro_batches_are_the_batch_in_order(parts: int, sizes: list[int]) -> None:
    whole = next(iter(TrainBatches(sequences([5, 2, 3, 9, 4, 2, 6]), 7, 4, 0).epoch(0)))
    found = list(cut(whole, parts))
    assert [len(part.inputs) for part in found] == sizes
    assert np.concatenate([part.inputs for part in found]).tolist() == whole.inputs.tolist()
    assert np.concatenate([part.targets for part in found]).tolist() == whole.targets.tolist()


def test_longest_input_is_the_widest_batch() -> None:
    lengths = [2, 9, 1, 4]
    for seq_len in (3, 8, 50):
        widest = max(batch.inputs.shape[1] for batch in TrainBatches(sequences(lengths), 2, seq_len, 0).epoch(0))
        assert longest_input(np.array(lengths), seq_len) == widest
    assert longest_input(np.array([], dtype=np.int64), 5) == 0


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size 0"):
        TrainBatches(sequences([3]), 0, 5, 0)
    with pytest.raises(InputError, match="seq_len -1"):
        fullest_batch_tokens(np.array([3]), 4, -1)
