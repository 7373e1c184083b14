"""Drawing items in proportion to any weights, in constant time: Vose's alias table, two arrays of V.

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
        """Return the same distribution on another device."""
        return Distribution(self.prob.to(device), self.alias.to(device), self.log_prob.to(device))


def popularity(counts: NDArray[np.integer] | Tensor, exponent: float = 1.0) -> Distribution:
    """Return the distribution of items in proportion to counts [V] to the power of `exponent`.

    Items that were never counted weigh as if counted once. ValueError for negative counts and for fewer than two items.
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or (values < 0).any():
        raise ValueError("counts must be a list of at least two numbers, none negative")
    return distribution(np.maximum(values, 1.0) ** exponent)


def distribution(weights: NDArray[np.floating]) -> Distribution:
    """Return the distribution of items in proportion to weights [V]; ValueError unless all are positive and finite."""
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
