"""The space of a search: which configurations are candidates, on a coarse grid and, later, between its points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product as combinations
from typing import get_args

from srsplan.kernels.losses import LOSSES, SAMPLERS, Kernel, Sampler
from srsplan.models.checks import require_positive
from srsplan.models.config import Architecture, Configuration, Precision
from srsplan.models.errors import InputError
from srsplan.models.kinds import DEFAULT_MODEL
from srsplan.planner.passes import with_whole_pass
from srsplan.planner.workload import USERS_PER_BATCH, Workload, WorstCase

BATCH_SIZES: list[int] = sorted(
    size for power in range(4, 14) for size in (2**power, 3 * 2 ** (power - 1)) if size <= 8192
)
LARGEST_BATCH = 1024
"""Sequences: published runs that the order is judged by have no larger batch, and memory limits none any more."""
NEGATIVES = [2**power for power in range(5, 13)]
"""Published runs use up to 4,095 negatives: the rule is not trusted far beyond."""

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
    recompute: bool | None = False
    """True for activation checkpointing; None leaves it to the search."""
    kernel: Kernel = "chunked"
    """The implementation of chunked losses that memory and times are for."""
    max_batch_size: int | None = None
    """Sequences of the largest batch; None ends where the evidence does."""
    model: str = DEFAULT_MODEL
    mask_share: float | None = None
    """Share of the items that a masked model learns to fill in; None for its usual one, and for other models."""
    sampler: Sampler = "uniform"
    """Sampler of the losses that have it; the others draw their negatives uniformly."""
    ema: float | None = None
    """Decay of the weights' moving average, one more copy of them; None keeps none."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"unknown sampler {self.sampler!r}", f"samplers are {', '.join(SAMPLERS)}")
        if self.kernel not in get_args(Kernel):
            raise InputError(f"unknown kernel {self.kernel!r}", f"kernels are {', '.join(get_args(Kernel))}")
        if self.max_batch_size is not None:
            require_positive(max_batch_size=self.max_batch_size)
            require_positive(batch_size=self.max_batch_size)  # whose limit it has

    @property
    def batch_limit(self) -> int:
        """The largest batch where nothing is known of the users."""
        return LARGEST_BATCH if self.max_batch_size is None else self.max_batch_size

    @property
    def largest_batch(self) -> int:
        """The largest batch that leaves an epoch with enough steps."""
        if self.workload.users is None:
            return self.batch_limit
        steps = max(BATCH_SIZES[0], self.workload.users // USERS_PER_BATCH // 8 * 8)
        return min(self.batch_limit, steps)

    def ends(self) -> str:
        """Say where batches, sequences and negatives end, and why."""
        batch = f"Batches end at {self.largest_batch:,} sequences"
        if self.largest_batch < self.batch_limit:
            batch += f": an epoch keeps {USERS_PER_BATCH} steps"
        elif self.max_batch_size is None:
            batch += ", as the published runs do (--max-batch-size)"
        length = max(self.workload.seq_lens())
        whole = "" if isinstance(self.workload, WorstCase) else " (95% of them are whole)"
        return f"{batch}, sequences at {length:,} items{whole}, negatives at {NEGATIVES[-1]:,}"

    def configuration(self, loss: str, batch_size: int, seq_len: int, negatives: Negatives) -> Configuration:
        """Return one configuration of this space, its whole batch in one pass."""
        kind = LOSSES[loss]
        found = Configuration(
            loss=loss,
            catalog=self.catalog,
            batch_size=batch_size,
            seq_len=seq_len,
            negatives=negatives,
            tokens_per_set=kind.default_tokens_per_set,
            sampler=self.sampler if self.sampler in kind.samplers else "uniform",
            model=self.model,
            mask_share=self.mask_share,
            architecture=self.architecture,
            precision=self.precision,
            kernel=self.kernel if kind.chunked else "chunked",
            recompute=bool(self.recompute),
            ema=self.ema,
        )
        return with_whole_pass(found, self.workload)

    def candidates(self, loss: str) -> list[Configuration]:
        """Return every combination of the knobs on the grid, for one loss."""
        return self._combined(loss, self._batch_sizes(), self.workload.seq_lens(), self._negatives(loss))

    def between(self, base: Configuration, longer: bool) -> list[Configuration]:
        """Return configurations between `base` and the next ones of the grid, their whole batches in one pass.

        Sequence lengths stay as they are unless `longer` ones are wanted.
        """
        longest = max(self.workload.seq_lens()) if longer else base.seq_len
        batch_sizes = _between(base.batch_size, self.largest_batch)
        return self._combined(base.loss, batch_sizes, _between(base.seq_len, longest), self._more_negatives(base))

    def _batch_sizes(self) -> list[int]:
        largest = self.largest_batch
        return [*(size for size in BATCH_SIZES if size < largest), largest]

    def _negatives(self, loss: str) -> list[Negatives]:
        kind = LOSSES[loss]
        if not kind.sampled:
            return [None]
        counts = [kind.usual_negatives] if kind.usual_negatives else NEGATIVES
        return [count for count in counts if count < self.catalog]

    def _more_negatives(self, base: Configuration) -> list[Negatives]:
        if base.negatives is None or LOSSES[base.loss].usual_negatives:
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
