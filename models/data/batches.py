"""Batches of packed sequences, their passes, and how full the fullest of them gets.

Letters: M tokens, B sequences, n sequences in all. A batch is its sequences one after another: nothing is padded. Items
are 1 to V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from srsplan.models.checks import require_positive
from srsplan.models.data.splits import Sequences

if TYPE_CHECKING:
    from srsplan.models.data.masking import Masking

NORMAL_SIGMAS = 6.0

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Packed:
    """B sequences in M tokens."""

    items: Numbers
    """Items [M], 1 to V, each sequence's oldest first."""
    offsets: Numbers
    """Bounds [B + 1]: sequence k is items[offsets[k]:offsets[k + 1]], and none is empty."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def positions(self) -> Numbers:
        """Return each token's place in its sequence, int64 [M]."""
        return np.arange(len(self.items)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))


@dataclass(frozen=True, eq=False)
class Batch(Packed):
    """Sequences of one step, and what is to be predicted: the item behind every token, or behind a mask."""

    targets: Numbers
    """Target items [T], 1 to V."""
    places: Numbers | None = None
    """The tokens [T] that the targets belong to, in their order; None where every token has one, T = M."""
    draw: int | None = None
    """The number of the draw of its negatives: that of the step which used the batch first. None: the present step."""

    @property
    def longest(self) -> int:
        """Return the tokens of the longest sequence."""
        return int(np.diff(self.offsets).max(initial=0))


@dataclass(frozen=True)
class TokenBound:
    """Bound and mean of the number of tokens in a batch."""

    fullest: int
    """Upper bound for the fullest batch of an epoch."""
    mean: float
    """The mean over full batches."""


def passes(batch: Batch, tokens: int, sequences: int) -> Iterator[Batch]:
    """Cut a batch between sequences into passes of at most so many tokens and sequences, in its order.

    ValueError where a sequence alone has more tokens.
    """
    first, count = 0, len(batch)
    while first < count:
        start = int(batch.offsets[first])
        last = int(np.searchsorted(batch.offsets, start + tokens, side="right")) - 1
        last = min(last, first + sequences, count)
        if last == first:
            raise ValueError(f"a sequence of {int(batch.offsets[first + 1]) - start} does not fit {tokens} tokens")
        end = int(batch.offsets[last])
        bounds = batch.offsets[first : last + 1] - start
        if batch.places is None:
            yield Batch(batch.items[start:end], bounds, batch.targets[start:end])
        else:
            wanted = slice(*np.searchsorted(batch.places, [start, end]))
            yield Batch(batch.items[start:end], bounds, batch.targets[wanted], batch.places[wanted] - start)
        first = last


def last_items(sequences: Sequences, rows: NDArray[np.integer], longest: int) -> Packed:
    """Return the last `longest` items of these sequences, packed."""
    ends = sequences.offsets[rows + 1]
    lengths = np.minimum(ends - sequences.offsets[rows], longest)
    offsets = _offsets(lengths)
    places = np.arange(offsets[-1]) + np.repeat(ends - lengths - offsets[:-1], lengths)
    return Packed(sequences.values[places].astype(np.int64), offsets)


class TrainBatches:
    """One epoch after another over the last `seq_len` + 1 items of every sequence, shuffled.

    With a `masking` over the last `seq_len`, some of them masked. Order and masks depend on the seed and the epoch's
    number only, so a resumed training sees what it would have seen. Sequences of a single item are left out.

    With an over-sampling factor `osf` the first so many epochs are new. Every later one takes as many mini-batches at
    random from all of theirs, none twice, each with the masks and the negatives that it had (Prakash et al., 2024,
    section 5.1, https://arxiv.org/abs/2410.17276). Nothing is stored: a batch's number draws all of it again.
    """

    def __init__(
        self,
        train: Sequences,
        batch_size: int,
        seq_len: int,
        seed: int,
        *,
        osf: int | None = None,
        masking: Masking | None = None,
    ) -> None:
        require_positive(batch_size=batch_size, seq_len=seq_len)
        self.train, self.batch_size, self.seq_len, self.seed, self.osf = train, batch_size, seq_len, seed, osf
        self._masking = masking
        self._rows = np.flatnonzero(train.lengths >= 2)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; the last may be smaller."""
        return -(-len(self._rows) // self.batch_size)

    def epoch(self, index: int) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, counted from 0."""
        if self.osf is None or index < self.osf:
            rows = self._shuffled(index)
            for place in range(len(self)):
                yield self._batch(self._part(rows, place), index * len(self) + place)
            return
        stored = self._draws(index, self.osf)
        parts = self._parts(stored)
        for draw in stored:
            yield self._batch(parts[int(draw)], int(draw))

    def _shuffled(self, index: int) -> NDArray[np.integer]:
        return np.random.default_rng([self.seed, index]).permutation(self._rows)

    def _part(self, rows: NDArray[np.integer], place: int) -> NDArray[np.integer]:
        """Return the rows of one batch of an epoch."""
        return rows[place * self.batch_size : (place + 1) * self.batch_size]

    def _draws(self, index: int, osf: int) -> Numbers:
        """Return the numbers of the batches that an epoch uses again: as many as it has, none twice."""
        return np.random.default_rng([self.seed, index]).choice(osf * len(self), len(self), replace=False)

    def _parts(self, draws: Numbers) -> dict[int, NDArray[np.integer]]:
        """Return the rows of these batches by their numbers; every epoch that they are of is shuffled once."""
        parts: dict[int, NDArray[np.integer]] = {}
        for index in np.unique(draws // len(self)):
            rows = self._shuffled(int(index))
            for draw in draws[draws // len(self) == index]:
                parts[int(draw)] = self._part(rows, int(draw) % len(self)).copy()  # else all of `rows` stays
        return parts

    def _batch(self, rows: NDArray[np.integer], draw: int) -> Batch:
        """Return inputs and targets: masked items, or of the last items all but the last, and all but the first."""
        if self._masking is not None:
            masks = np.random.default_rng([self.seed, draw, len(self)])
            return replace(self._masking.batch(last_items(self.train, rows, self.seq_len), masks), draw=draw)
        found = last_items(self.train, rows, self.seq_len + 1)
        inputs, targets = np.ones(len(found.items), dtype=bool), np.ones(len(found.items), dtype=bool)
        inputs[found.offsets[1:] - 1] = False
        targets[found.offsets[:-1]] = False
        offsets = found.offsets - np.arange(len(found.offsets))
        return Batch(found.items[inputs], offsets, found.items[targets], draw=draw)


def history_batches(
    histories: Sequences, users: int, seq_len: int, tokens: int, masking: Masking | None = None
) -> Iterator[tuple[slice, Packed]]:
    """Yield evaluation batches in order: rows of the holdout, and the last `seq_len` items of their histories.

    With a `masking` a mask stands behind them, and is one of the `seq_len`. A batch has at most so many users and
    tokens, but one user at least.
    """
    require_positive(users=users, seq_len=seq_len)
    items = seq_len if masking is None else max(1, seq_len - 1)
    ends, first = np.cumsum(np.minimum(histories.lengths, items) + (masking is not None)), 0
    while first < len(histories):
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + tokens, side="right"))
        rows = slice(first, max(first + 1, min(last, first + users)))
        found = last_items(histories, np.arange(rows.start, rows.stop), items)
        yield rows, found if masking is None else masking.behind(found)
        first = rows.stop


def _offsets(lengths: Numbers) -> Numbers:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def longest_input(lengths: NDArray[np.integer], seq_len: int) -> int:
    """Return how many tokens the longest sequence gives, from the lengths (items) of all: at most `seq_len`."""
    return int(_targets(lengths, seq_len).max(initial=0))


def fullest_batch_tokens(lengths: NDArray[np.integer], batch_size: int, seq_len: int) -> TokenBound:
    """Bound the tokens of an epoch's fullest batch, from the lengths (items) of the sequences.

    Epochs are shuffled at random, so every batch is a random draw: a pass of so many tokens holds a whole batch. The
    bound is the smaller of two: the `batch_size` longest sequences together, which nothing exceeds, and the Chernoff
    bound that a batch exceeds with probability exp(-18) at most. For nearly normal sums that is mean + 6 sigma
    sqrt(batch_size), but where few sequences are long that simpler bound is exceeded in practice (Amazon Video, 256 x
    200). Holds for draws without replacement (Hoeffding, 1963, section 6,
    https://doi.org/10.1080/01621459.1963.10500830).
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
