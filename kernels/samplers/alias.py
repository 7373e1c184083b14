"""Drawing items from other distributions than the uniform, in constant time.

Any weights: Vose's alias table, two arrays of V. In-batch: the targets of the same batch, each as often as it stands
there, which is the popularity of the moment and needs no table.

Vose, 1991, A linear algorithm for generating random numbers with a given distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Distribution:
    """An item distribution on the device: prob fp32 [V], alias int32 [V], log_prob fp32 [V].

    Slot i gives item i with probability prob[i], otherwise item alias[i]; log_prob is that of the items drawn so.
    """

    prob: Tensor
    alias: Tensor
    log_prob: Tensor

    def to(self, device: torch.device) -> Distribution:
        """The same on another device."""
        return Distribution(self.prob.to(device), self.alias.to(device), self.log_prob.to(device))


@dataclass(frozen=True)
class InBatch:
    """The batch's own targets as a distribution: slots int64 [K] to draw from, log_prob fp32 [V] of the items there."""

    slots: Tensor
    log_prob: Tensor


def in_batch(targets: Tensor, catalog: int, ignore_index: int | None = None) -> InBatch:
    """The distribution of a batch's targets int64 [M], on their device.

    With `ignore_index` targets of that value are left out, for which a GPU is waited for; without, all are taken.
    """
    slots = targets if ignore_index is None else targets[targets != ignore_index]
    counts = torch.zeros(catalog, dtype=torch.float32, device=targets.device)
    counts.index_add_(0, slots, torch.ones_like(slots, dtype=torch.float32))
    return InBatch(slots, torch.log(counts / max(1, len(slots))))


def popularity(counts: NDArray[np.integer] | Tensor, exponent: float = 1.0) -> Distribution:
    """Items in proportion to counts [V] to the power of `exponent`; items never counted weigh as if counted once.

    ValueError for negative counts, for fewer than two items, or where all weigh nothing.
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or (values < 0).any():
        raise ValueError("counts must be a list of at least two numbers, none negative")
    return distribution(np.maximum(values, 1.0) ** exponent)


def distribution(weights: NDArray[np.floating]) -> Distribution:
    """Items in proportion to weights [V], all positive."""
    weights = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("weights must be positive and finite: an item that is never drawn has no log-Q")
    shares = weights / weights.sum()
    prob, alias = _vose(shares * len(shares))
    return Distribution(
        torch.from_numpy(prob.astype(np.float32)),
        torch.from_numpy(alias.astype(np.int32)),
        torch.from_numpy(np.log(shares).astype(np.float32)),
    )


def _vose(scaled: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pair slots that hold less than their share with slots that hold more, whole arrays at a time.

    Small and large slots are lined up by their cumulated lack and surplus: each small slot takes its alias from the
    large slot that its lack falls into; a large slot that falls below 1 by it becomes a small one of the next round.
    """
    prob, alias = np.ones_like(scaled), np.arange(len(scaled))
    rest, open_slots = scaled.copy(), np.arange(len(scaled))
    while True:
        small = open_slots[rest[open_slots] < 1 - 1e-12]
        large = open_slots[rest[open_slots] > 1 + 1e-12]
        if not len(small) or not len(large):
            return prob, alias
        lack = np.cumsum(1 - rest[small])
        surplus = np.cumsum(rest[large] - 1)
        giver = np.minimum(np.searchsorted(surplus, lack - (1 - rest[small]), side="right"), len(large) - 1)
        prob[small], alias[small] = rest[small], large[giver]
        given = np.bincount(giver, weights=1 - rest[small], minlength=len(large))
        rest[large] -= given
        open_slots = large
