"""The space of a search: which configurations are candidates, on a coarse grid and, later, between its points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product as combinations

from srsplan.kernels.losses import LOSSES, SAMPLERS, Sampler
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.planner.workload import USERS_PER_BATCH, Workload

BATCH_SIZES: list[int] = sorted(
    size for power in range(4, 14) for size in (2**power, 3 * 2 ** (power - 1)) if size <= 8192
)
NEGATIVES = [2**power for power in range(5, 13)]
"""Published runs use batches up to 5,120 and up to 4,095 negatives: the rule is not trusted far beyond."""

Negatives = int | None
"""A number of negatives; None for a loss that scores the whole catalog."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The space of a search: the knobs that it may turn, and what all its configurations share."""

    catalog: int
    losses: tuple[str, ...]
    architecture: Architecture
    precision: Precision
    workload: Workload
    recompute: bool = False
    """True for activation checkpointing."""
    sampler: Sampler = "uniform"
    """Sampler of the losses that have it; the others draw their negatives uniformly."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"unknown sampler {self.sampler!r}", f"samplers are {', '.join(SAMPLERS)}")

    @property
    def largest_batch(self) -> int:
        """The largest batch that leaves an epoch with enough steps."""
        users: int = self.workload.users or BATCH_SIZES[-1] * USERS_PER_BATCH
        return min(BATCH_SIZES[-1], max(BATCH_SIZES[0], users // USERS_PER_BATCH // 8 * 8))

    def configuration(self, loss: str, batch_size: int, seq_len: int, negatives: Negatives) -> Configuration:
        """Return one configuration of this space."""
        kind = LOSSES[loss]
        return Configuration(
            loss=loss,
            catalog=self.catalog,
            batch_size=batch_size,
            seq_len=seq_len,
            negatives=negatives,
            tokens_per_set=kind.default_tokens_per_set,
            sampler=self.sampler if self.sampler in kind.samplers else "uniform",
            valid_tokens=self.workload.valid_tokens(batch_size, seq_len),
            architecture=self.architecture,
            precision=self.precision,
            recompute=self.recompute,
        )

    def candidates(self, loss: str) -> list[Configuration]:
        """Return every combination of the knobs on the grid, for one loss."""
        return self._combined(loss, self._batch_sizes(), self.workload.seq_lens(), self._negatives(loss))

    def between(self, base: Configuration, longer: bool) -> list[Configuration]:
        """Return configurations between `base` and the next ones of the grid, and all larger batches of the grid.

        Sequence lengths stay as they are unless `longer` ones are wanted.
        """
        longest = max(self.workload.seq_lens()) if longer else base.seq_len
        batch_sizes = {*_between(base.batch_size, self.largest_batch)}
        batch_sizes |= {size for size in self._batch_sizes() if size > base.batch_size}
        return self._combined(base.loss, batch_sizes, _between(base.seq_len, longest), self._more_negatives(base))

    def _batch_sizes(self) -> list[int]:
        return [size for size in BATCH_SIZES if size <= self.largest_batch]

    def _negatives(self, loss: str) -> list[Negatives]:
        kind = LOSSES[loss]
        if not kind.sampled:
            return [None]
        counts = [kind.fixed_negatives] if kind.fixed_negatives else NEGATIVES
        return [count for count in counts if count < self.catalog]

    def _more_negatives(self, base: Configuration) -> list[Negatives]:
        if base.negatives is None or LOSSES[base.loss].fixed_negatives:
            return [base.negatives]
        return [*_between(base.negatives, min(NEGATIVES[-1], self.catalog - 1))]

    def _combined(
        self, loss: str, batch_sizes: Iterable[int], seq_lens: Iterable[int], negatives: Iterable[Negatives]
    ) -> list[Configuration]:
        counts = list(negatives)
        bases = (
            self.configuration(loss, *knobs, count)
            for count in counts[:1]
            for knobs in combinations(batch_sizes, seq_lens)
        )
        return [replace(base, negatives=count) for base in bases for count in counts]


def _between(size: int, limit: int) -> list[int]:
    """Return sizes from `size` to the next of the grid, in eighths, as multiples of 8 where large; at most `limit`."""
    unit = 8 if size >= 64 else 1
    return sorted({size, *(min(limit, size * part // 8 // unit * unit) for part in range(9, 16) if size < limit)})
