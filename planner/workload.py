"""The workload: how many items and users there are, and how many tokens a batch and a pass of it have.

Sources, best first: the interactions themselves, a mean length with an assumed distribution, or nothing, which means
that every sequence is full: the worst case. The plan says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from srsplan.models.errors import InputError

BOUND = "fullest batch bounded (Chernoff, e^-18 a batch)"
"""Name of the bound on the fullest of an epoch's random batches; models/data/batches.py has the reasons."""

QUANTILES = 2000
"""An assumed distribution of lengths is represented by so many of its quantiles."""

POPULATION = 8
"""At least so many times the users of a batch are assumed: a batch must never be all there are."""

LARGEST_DRAWN = 16_384
"""The bound of larger batches is that of so many users, in proportion: the excess over the mean only shrinks."""

LONGEST_MEAN = 10**6
"""Longest mean length, in items: nobody has more interactions, and far larger numbers would not be exact."""

SPARE_SEQUENCES = 1.25
"""A pass may have so many times the sequences that it has on average: the tokens are what ends it, nearly always."""

FEW_SEQUENCES = 8
"""And so many more, which passes of few sequences need."""

SHORT_TOKENS = 16
"""Where lengths are unknown a pass has a sequence for so many tokens at most: shorter ones on average are rare."""

LONGEST_SEQ_LEN = 1024
SEQ_LEN_QUANTILE = 0.95
USERS_PER_BATCH = 20
"""At least so many batches per epoch: larger ones leave an epoch with too few steps."""


class Workload(Protocol):
    """The figures about the data that the search asks for."""

    @property
    def basis(self) -> str:
        """Source of the figures, for people."""
        ...

    @property
    def users(self) -> int | None:
        """Training sequences, where known."""
        ...

    def fullest_batch(self, batch_size: int, seq_len: int) -> int:
        """Return tokens that practically no batch exceeds, at most batch_size x seq_len.

        One that does takes a pass more, and no memory.
        """
        ...

    def mean_tokens(self, seq_len: int) -> float:
        """Return the mean tokens of a sequence, cut to its last `seq_len`."""
        ...

    def pass_sequences(self, tokens: int, batch_size: int, seq_len: int) -> int:
        """Return the sequences that a pass of so many tokens may have, at most those of the batch.

        Attention's backward takes memory for every sequence, so there must be a limit; where it ends a pass before the
        tokens do, the batch takes a pass more.
        """
        ...

    def seen_pairs(self, users: int) -> int | None:
        """Return how many items a batch of so many users has seen, at most; None where unknown."""
        ...

    def seq_lens(self) -> list[int]:
        """Return sequence lengths worth trying, powers of two."""
        ...


@dataclass(frozen=True)
class WorstCase:
    """Nothing is known: every sequence is full."""

    basis: str = "every sequence full (worst case): --data or --mean-length says more"
    users: int | None = None

    def fullest_batch(self, batch_size: int, seq_len: int) -> int:
        """Return the tokens of full sequences."""
        return batch_size * seq_len

    def mean_tokens(self, seq_len: int) -> float:
        """Return the tokens of a full sequence."""
        return float(seq_len)

    def pass_sequences(self, tokens: int, batch_size: int, seq_len: int) -> int:
        """Return a sequence for every 16 tokens: short ones are as likely as any."""
        return min(batch_size, max(-(-tokens // SHORT_TOKENS), -(-tokens // seq_len)))

    def seen_pairs(self, users: int) -> int | None:
        """Return None: without data it is not known what users have seen."""
        return None

    def seq_lens(self) -> list[int]:
        """Return powers of two from 32 to 512."""
        return [32, 64, 128, 256, 512]


@dataclass(frozen=True)
class MeanLength:
    """Only the mean length of a user's sequence is known: lengths are assumed to be exponentially distributed."""

    mean: float
    users: int | None = None
    _fullest: dict[tuple[int, int], int] = field(default_factory=dict, repr=False, compare=False)
    _means: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.mean <= LONGEST_MEAN:
            bounds = f"not above zero and at most {LONGEST_MEAN:,}"
            raise InputError(f"--mean-length {self.mean:g} is {bounds}", "give interactions per user, such as 54.9")

    @property
    def basis(self) -> str:
        """The assumption in words."""
        return f"mean length {self.mean:g}, lengths assumed exponentially distributed; {BOUND}"

    def fullest_batch(self, batch_size: int, seq_len: int) -> int:
        """Return the bound of models.data.batches for the assumed lengths."""
        if (batch_size, seq_len) not in self._fullest:
            self._fullest[batch_size, seq_len] = self._bound(batch_size, seq_len)
        return self._fullest[batch_size, seq_len]

    def _bound(self, batch_size: int, seq_len: int) -> int:
        from srsplan.models.data.batches import fullest_batch_tokens

        largest = min(batch_size, LARGEST_DRAWN)
        lengths = np.repeat(self._lengths, -(-POPULATION * largest // QUANTILES))
        fullest = fullest_batch_tokens(lengths, largest, seq_len).fullest
        return max(1, min(batch_size * seq_len, math.ceil(fullest * batch_size / largest)))

    def mean_tokens(self, seq_len: int) -> float:
        """Return the mean of the assumed lengths, cut."""
        if seq_len not in self._means:
            self._means[seq_len] = _mean_tokens(self._lengths, seq_len)
        return self._means[seq_len]

    def pass_sequences(self, tokens: int, batch_size: int, seq_len: int) -> int:
        """Return a quarter more sequences than the tokens hold on average."""
        return _pass_sequences(tokens, batch_size, self.mean_tokens(seq_len))

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """Quantiles of the exponential distribution, in items of a sequence: one more than its targets."""
        shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
        return np.ceil(-self.mean * np.log1p(-shares)).astype(np.int64) + 1

    def seen_pairs(self, users: int) -> int | None:
        """Return a bound six standard deviations above the mean; an exponential's deviation is its mean."""
        return math.ceil(self.mean * (users + 6 * math.sqrt(users)))

    def seq_lens(self) -> list[int]:
        """Return powers of two up to the assumed 95% quantile."""
        return _powers_to(self.mean * math.log(1 / (1 - SEQ_LEN_QUANTILE)))


class FromData:
    """The training part of real interactions: what `train` will cut batches from."""

    def __init__(
        self, path: Path, lengths: NDArray[np.int64], histories: NDArray[np.int64], *, masked: bool = False
    ) -> None:
        """Take the `lengths` of the training sequences and the `histories` of users that are ranked; both in items.

        A `masked` model sees all items of a sequence, the others all but the last, which is a target only.
        """
        self.lengths, self.histories = lengths, histories
        self._followed = np.where(lengths >= 2, lengths + 1, lengths) if masked else lengths
        self.users = len(lengths)
        self._fullest: dict[tuple[int, int], int] = {}
        self._means: dict[int, float] = {}
        self.basis = (
            f"{path.name}: {len(lengths):,} training sequences, mean length {lengths.mean():.1f}, "
            f"longest {int(lengths.max()):,}; {BOUND}"
        )

    def fullest_batch(self, batch_size: int, seq_len: int) -> int:
        """Return the bound of models.data.batches for these lengths."""
        from srsplan.models.data.batches import fullest_batch_tokens

        if (batch_size, seq_len) not in self._fullest:
            fullest = fullest_batch_tokens(self._followed, batch_size, seq_len).fullest
            self._fullest[batch_size, seq_len] = max(1, fullest)
        return self._fullest[batch_size, seq_len]

    def mean_tokens(self, seq_len: int) -> float:
        """Return the mean of the training sequences, cut."""
        if seq_len not in self._means:
            self._means[seq_len] = _mean_tokens(self._followed, seq_len)
        return self._means[seq_len]

    def pass_sequences(self, tokens: int, batch_size: int, seq_len: int) -> int:
        """Return a quarter more sequences than the tokens hold on average."""
        return _pass_sequences(tokens, batch_size, self.mean_tokens(seq_len))

    def seen_pairs(self, users: int) -> int | None:
        """Return the sum of the longest histories."""
        return int(np.sort(self.histories)[-users:].sum())

    def seq_lens(self) -> list[int]:
        """Return powers of two up to the first that holds 95% of the sequences whole."""
        return _powers_to(float(np.quantile(self._followed - 1, SEQ_LEN_QUANTILE)))


def _mean_tokens(lengths: NDArray[np.integer], seq_len: int) -> float:
    """Return the mean tokens of sequences of so many items: one without a target is no sequence."""
    tokens = np.minimum(lengths - 1, seq_len)
    tokens = tokens[tokens > 0]
    return float(tokens.mean()) if len(tokens) else 1.0


def _pass_sequences(tokens: int, batch_size: int, mean_tokens: float) -> int:
    return min(batch_size, math.ceil(SPARE_SEQUENCES * tokens / mean_tokens) + FEW_SEQUENCES)


def _powers_to(length: float) -> list[int]:
    top = 16
    while top < min(length, LONGEST_SEQ_LEN):
        top *= 2
    return [16 * 2**step for step in range(int(math.log2(top // 16)) + 1)]
