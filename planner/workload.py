"""What the data say about a plan: items, users, and how many targets of a batch are not padding.

Sources, best first: the interactions themselves, a mean length with an assumed distribution, or nothing, which means no
padding at all: the worst case. The plan says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from srsplan.models.errors import InputError

SIGMAS = 6.0
"""The fullest of a million random batches is this many standard deviations above the mean."""

LONGEST_SEQ_LEN = 1024
SEQ_LEN_QUANTILE = 0.95
USERS_PER_BATCH = 20
"""At least so many batches per epoch: larger ones leave an epoch with too few steps."""


class Workload(Protocol):
    """What the search asks about the data."""

    @property
    def basis(self) -> str:
        """Where the figures come from, for people."""
        ...

    @property
    def users(self) -> int | None:
        """Training sequences, where known."""
        ...

    def valid_tokens(self, batch_size: int, seq_len: int) -> int:
        """M of the fullest batch, at most batch_size x seq_len."""
        ...

    def seen_pairs(self, users: int) -> int | None:
        """Items that a batch of so many users has seen, at most; None where unknown."""
        ...

    def seq_lens(self) -> list[int]:
        """Sequence lengths worth trying, powers of two."""
        ...


@dataclass(frozen=True)
class WorstCase:
    """Nothing is known: every position of every batch is a target."""

    basis: str = "no padding (worst case): every position is a target; --data or --mean-length gives the real figure"
    users: int | None = None

    def valid_tokens(self, batch_size: int, seq_len: int) -> int:
        """All of them."""
        return batch_size * seq_len

    def seen_pairs(self, users: int) -> int | None:
        """Unknown."""
        return None

    def seq_lens(self) -> list[int]:
        """32 to 512."""
        return [32, 64, 128, 256, 512]


@dataclass(frozen=True)
class MeanLength:
    """Only the mean length of a user's sequence is known: lengths are assumed to be exponentially distributed."""

    mean: float
    users: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and self.mean > 0):
            raise InputError(
                f"--mean-length {self.mean:g} is not above zero", "give interactions per user, such as 54.9"
            )

    @property
    def basis(self) -> str:
        """The assumption."""
        return (
            f"mean length {self.mean:g}, lengths assumed exponentially distributed; fullest batch at {SIGMAS:g} sigma"
        )

    def valid_tokens(self, batch_size: int, seq_len: int) -> int:
        """Mean plus six standard deviations of the sum of min(length, seq_len)."""
        ratio = seq_len / self.mean
        left = math.exp(-ratio)
        mean = self.mean * (1 - left)
        variance = 2 * self.mean**2 * (1 - left * (1 + ratio)) - mean**2
        bound = batch_size * mean + SIGMAS * math.sqrt(max(0.0, variance) * batch_size)
        return max(1, min(batch_size * seq_len, math.ceil(bound)))

    def seen_pairs(self, users: int) -> int | None:
        """Six standard deviations above the mean; an exponential's deviation is its mean."""
        return math.ceil(self.mean * (users + SIGMAS * math.sqrt(users)))

    def seq_lens(self) -> list[int]:
        """Up to the assumed 95% quantile."""
        return _powers_to(self.mean * math.log(1 / (1 - SEQ_LEN_QUANTILE)))


class FromData:
    """The training part of real interactions: what `train` will cut batches from."""

    def __init__(self, path: Path, lengths: NDArray[np.int64], histories: NDArray[np.int64]) -> None:
        """`lengths` of the training sequences, `histories` of the users that are ranked; both in items."""
        self.lengths, self.histories = lengths, histories
        self.users = len(lengths)
        self.basis = (
            f"{path}: {len(lengths):,} training sequences, mean length {lengths.mean():.1f}, "
            f"longest {int(lengths.max()):,}; fullest batch at {SIGMAS:g} sigma"
        )

    def valid_tokens(self, batch_size: int, seq_len: int) -> int:
        """The bound of models.batches for these lengths."""
        from srsplan.models.batches import fullest_batch_tokens

        return max(1, fullest_batch_tokens(self.lengths, batch_size, seq_len).fullest)

    def seen_pairs(self, users: int) -> int | None:
        """The longest histories together."""
        return int(np.sort(self.histories)[-users:].sum())

    def seq_lens(self) -> list[int]:
        """Up to the first power of two that holds 95% of the sequences whole."""
        return _powers_to(float(np.quantile(self.lengths - 1, SEQ_LEN_QUANTILE)))


def _powers_to(length: float) -> list[int]:
    top = 16
    while top < min(length, LONGEST_SEQ_LEN):
        top *= 2
    return [16 * 2**step for step in range(int(math.log2(top // 16)) + 1)]
