"""Which implementation of a loss runs where; never silent: the choice carries its reason and is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels import chunked, eager
from srsplan.kernels.sampling import Sampling

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Choice:
    """An implementation and why it was chosen."""

    loss: str
    implementation: str
    reason: str


def choose(loss: str, device: torch.device) -> Choice:
    """The implementation of `loss` ("ce", "ce-", "cce", "cce-", "bce") on `device`; KeyError for another name."""
    if loss in ("ce", "ce-", "bce"):
        return Choice(loss, "eager PyTorch", "the plain form, all logits in memory")
    if loss not in ("cce", "cce-"):
        raise KeyError(loss)
    return Choice(
        loss,
        "chunked PyTorch",
        f"this version has no Triton kernel; same loss and gradients on {device.type}",
    )


@dataclass(frozen=True, kw_only=True)
class LossCall:
    """A loss with everything but its tensors decided."""

    loss: str
    negatives: int | None
    sampling: Sampling
    compute_dtype: torch.dtype | None = None

    def __call__(self, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over targets: hidden [M, D], item_table [V, D], targets int64 [M]."""
        if self.loss == "ce":
            return eager.ce(hidden, item_table, targets)
        if self.loss == "cce":
            return chunked.cce(hidden, item_table, targets, compute_dtype=self.compute_dtype)
        if self.negatives is None:
            raise ValueError(f"{self.loss} needs a number of negatives")
        if self.loss == "cce-":
            return chunked.cce_neg(
                hidden,
                item_table,
                targets,
                self.negatives,
                sampling=self.sampling,
                compute_dtype=self.compute_dtype,
            )
        sampled = {"ce-": eager.ce_neg, "bce": eager.bce}[self.loss]
        return sampled(hidden, item_table, targets, self.negatives, sampling=self.sampling)
