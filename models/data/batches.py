"""Batches of padded sequences, and how full the fullest of them gets.

Letters: B sequences, L positions, n sequences in all. Items are 1 to V; 0 is padding and stands on the right: causal
attention then needs no padding mask, and every batch is only as wide as its longest sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from srsplan.models.config import require_positive
from srsplan.models.data.splits import Sequences

NORMAL_SIGMAS = 6.0


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one step: the target at a position is the item after its input."""

    inputs: NDArray[np.int64]
    """Items [B, L], 0 where padding stands."""
    targets: NDArray[np.int64]
    """Target items [B, L], 0 where there is none."""


@dataclass(frozen=True)
class TokenBound:
    """Bound and mean of the number of valid targets in a batch."""

    fullest: int
    """Upper bound for the fullest batch of an epoch."""
    mean: float
    """The mean over full batches."""


def cut(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a batch into so many micro-batches of equally many sequences (the last may have fewer), as wide as it is."""
    size = -(-len(batch.inputs) // parts)
    for start in range(0, len(batch.inputs), size):
        yield Batch(batch.inputs[start : start + size], batch.targets[start : start + size])


def padded(sequences: Sequences, rows: NDArray[np.integer], longest: int) -> NDArray[np.int64]:
    """Return the last `longest` items of these sequences, 0 on the right as padding: int64 [B, L], L <= `longest`."""
    ends = sequences.offsets[rows + 1]
    lengths = np.minimum(ends - sequences.offsets[rows], longest)
    columns = np.arange(lengths.max(initial=0))
    items = sequences.values.take((ends - lengths)[:, None] + columns, mode="clip")
    return np.where(columns < lengths[:, None], items, 0).astype(np.int64)


class TrainBatches:
    """One epoch after another over the last `seq_len` + 1 items of every sequence, shuffled.

    The order depends on the seed and the epoch's number only, so a resumed training sees what it would have seen.
    Sequences of a single item have no target and are left out.
    """

    def __init__(self, train: Sequences, batch_size: int, seq_len: int, seed: int) -> None:
        require_positive(batch_size=batch_size, seq_len=seq_len)
        self.train, self.batch_size, self.seq_len, self.seed = train, batch_size, seq_len, seed
        self._rows = np.flatnonzero(train.lengths >= 2)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; the last may be smaller."""
        return -(-len(self._rows) // self.batch_size)

    def epoch(self, index: int) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, counted from 0; L is the longest of each batch, at most `seq_len`."""
        rows = np.random.default_rng([self.seed, index]).permutation(self._rows)
        for start in range(0, len(rows), self.batch_size):
            items = padded(self.train, rows[start : start + self.batch_size], self.seq_len + 1)
            targets = np.ascontiguousarray(items[:, 1:])
            yield Batch(np.where(targets > 0, items[:, :-1], 0), targets)


def history_batches(
    histories: Sequences, batch_size: int, seq_len: int
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield evaluation batches in order: rows of the holdout, inputs int64 [B, L] (the last `seq_len` items), and the
    last position of each [B]."""
    require_positive(batch_size=batch_size, seq_len=seq_len)
    for start in range(0, len(histories), batch_size):
        rows = slice(start, min(start + batch_size, len(histories)))
        inputs = padded(histories, np.arange(rows.start, rows.stop), seq_len)
        yield rows, inputs, (inputs > 0).sum(axis=1) - 1


def longest_input(lengths: NDArray[np.integer], seq_len: int) -> int:
    """Return how many positions the widest batch of sequences of these lengths (items) has: at most `seq_len`."""
    return int(_targets(lengths, seq_len).max(initial=0))


def fullest_batch_tokens(lengths: NDArray[np.integer], batch_size: int, seq_len: int) -> TokenBound:
    """Bound the valid targets of an epoch's fullest batch, from the lengths (items) of the sequences.

    Memory follows the fullest batch, and epochs are shuffled at random, so every batch is a random draw. The bound is
    the smaller of two: the `batch_size` longest sequences together, which nothing exceeds, and the Chernoff bound that
    a batch exceeds with probability exp(-18) at most. For nearly normal sums that is mean + 6 sigma sqrt(batch_size),
    but where few sequences are long that simpler bound is exceeded in practice (Amazon Video, 256 x 200). Holds for
    draws without replacement (Hoeffding, 1963, https://doi.org/10.1080/01621459.1963.10500830, section 6).
    """
    require_positive(batch_size=batch_size, seq_len=seq_len)
    tokens = _targets(lengths, seq_len)
    tokens = tokens[tokens > 0]
    drawn = min(batch_size, len(tokens))
    if not drawn:
        return TokenBound(0, 0.0)
    most = int(np.partition(tokens, len(tokens) - drawn)[len(tokens) - drawn :].sum())
    return TokenBound(min(most, int(np.ceil(_chernoff(tokens, drawn)))), float(tokens.mean()) * drawn)


def _targets(lengths: NDArray[np.integer], seq_len: int) -> NDArray[np.int64]:
    return np.clip(lengths.astype(np.int64) - 1, 0, seq_len)


def _chernoff(tokens: NDArray[np.int64], drawn: int) -> float:
    """Return the least (drawn log E[exp(t X)] + 18) / t over a grid of t: the grid decides how tight the bound is."""
    values, counts = np.unique(tokens, return_counts=True)
    mean, sigma = float(tokens.mean()), float(tokens.std())
    if sigma == 0:
        return mean * drawn
    normal = NORMAL_SIGMAS / (sigma * np.sqrt(drawn))  # the best t of a normal sum; a skewed one wants a smaller
    tilts = normal * np.geomspace(1 / 256, 16, 129)[:, None]
    moments = np.log((np.exp(tilts * (values - values[-1])) * (counts / counts.sum())).sum(axis=1, keepdims=True))
    bounds = drawn * values[-1] + (drawn * moments + NORMAL_SIGMAS**2 / 2) / tilts
    return float(bounds.min())
