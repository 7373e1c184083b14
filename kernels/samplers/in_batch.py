"""Drawing negatives from the targets of the same batch: the popularity of the moment, which needs no table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InBatch:
    """The batch's own targets as a distribution: slots int64 [K] to draw from, log_prob fp32 [V] of the items there."""

    slots: Tensor
    log_prob: Tensor


def in_batch(targets: Tensor, catalog: int, ignore_index: int | None = None) -> InBatch:
    """Return the distribution of a batch's targets int64 [M], on their device.

    Calls over parts of a batch share it: each draws from all of the batch's targets. With `ignore_index` targets of
    that value are left out, for which a GPU is waited for; without, all are taken. Where none is left there is nothing
    to draw from and no loss to draw for: item 0 stands for it, so that a slot can be read.
    """
    slots = targets if ignore_index is None else targets[targets != ignore_index]
    if not len(slots):
        slots = targets.new_zeros(1)
    counts = torch.zeros(catalog, dtype=torch.float32, device=targets.device)
    counts.index_add_(0, slots, torch.ones_like(slots, dtype=torch.float32))
    return InBatch(slots, torch.log(counts / len(slots)))
