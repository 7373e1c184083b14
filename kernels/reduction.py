"""Reductions of the losses of single tokens to one number, the same for every loss and every implementation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
IGNORE_INDEX = -100
"""The target of a token that counts for nothing."""


def check_reduction(reduction: str) -> None:
    """Raise ValueError for a reduction that does not exist."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction!r} is none of mean, sum, none")


def reduce_losses(losses: Tensor, keep: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean, the sum or all of the losses [M] whose `keep` is true.

    Ignored tokens count for nothing; the mean of none is 0, so that an empty batch is not NaN.
    """
    check_reduction(reduction)
    losses = torch.where(keep, losses, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / keep.sum().clamp(min=1) if reduction == "mean" else losses.sum()
