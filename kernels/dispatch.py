"""Which implementation of a loss runs where; never silent: the choice carries its reason and is printed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from srsplan.kernels import chunked, eager
from srsplan.kernels.samplers.alias import Distribution, in_batch
from srsplan.kernels.samplers.sampling import Sampling

Implementation = Literal["auto", "chunked", "triton"]
EAGER = ("ce", "ce-", "bce")
"""Losses without a chunked form."""
SMALLEST_STEP, LARGEST_DIM = 16, 1024
"""Of hidden sizes that the Triton kernels take."""


@dataclass(frozen=True)
class Choice:
    """An implementation and why it was chosen."""

    loss: str
    implementation: str
    reason: str


def choose(loss: str, device: torch.device, implementation: Implementation = "auto", dim: int | None = None) -> Choice:
    """The implementation of `loss` ("ce", "ce-", "cce", "cce-", "bce") on `device`; KeyError for another name.

    "auto" takes the chunked form: the Triton kernels have not run on a GPU yet. "triton" is a ValueError with the
    reason where they cannot run; `dim` is the hidden size.
    """
    if loss not in (*EAGER, "cce", "cce-"):
        raise KeyError(loss)
    if implementation == "triton":
        refuse_triton(loss, device, dim)
        return Choice(loss, "Triton", "asked for; its speed and memory on a GPU are not measured yet")
    if loss in EAGER:
        return Choice(loss, "eager PyTorch", "the plain form, all logits in memory")
    reason = "asked for" if implementation == "chunked" else "Triton is not measured on a GPU yet: ask for it"
    return Choice(loss, "chunked PyTorch", f"{reason}; same loss and gradients on {device.type}")


def refuse_triton(loss: str, device: torch.device, dim: int | None = None) -> None:
    """ValueError with the reason where the Triton kernels cannot run."""
    if loss in EAGER:
        raise ValueError(f"{loss} has no Triton kernel: cce and cce- have")
    if find_spec("triton") is None:
        raise ValueError(
            "Triton is not installed (there is none for Windows and macOS): the chunked form runs everywhere"
        )
    if device.type not in ("cuda", "meta"):
        raise ValueError(f"Triton kernels run on CUDA, not on {device.type}: the chunked form runs everywhere")
    if dim is not None and (dim % SMALLEST_STEP or dim > LARGEST_DIM):
        raise ValueError(f"hidden size {dim} is no multiple of 16 up to 1024: the chunked form takes any")


@dataclass(frozen=True, kw_only=True)
class LossCall:
    """A loss with everything but its tensors decided."""

    loss: str
    negatives: int | None
    sampling: Sampling
    compute_dtype: torch.dtype | None = None
    implementation: Implementation = "auto"
    distribution: Distribution | None = None
    """What negatives are drawn by; uniform without."""
    in_batch: bool = False
    """Negatives are drawn from the targets of the call."""

    def __call__(self, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over targets: hidden [M, D], item_table [V, D], targets int64 [M]."""
        if self.loss not in ("ce", "cce") and self.negatives is None:
            raise ValueError(f"{self.loss} needs a number of negatives")
        if self.loss in EAGER and self.implementation == "triton":
            raise ValueError(f"{self.loss} has no Triton kernel: cce and cce- have")
        if self.loss == "ce":
            return eager.ce(hidden, item_table, targets)
        if self.loss == "bce":
            return eager.bce(hidden, item_table, targets, self.negatives or 1, sampling=self.sampling)
        if self.loss == "cce":
            if self.implementation == "triton":
                return self._triton(hidden, item_table, targets)
            return chunked.cce(hidden, item_table, targets, compute_dtype=self.compute_dtype)
        sampled: dict[str, Any] = {
            "sampling": self.sampling,
            "distribution": in_batch(targets, len(item_table)) if self.in_batch else self.distribution,
        }
        if self.implementation == "triton":
            return self._triton(hidden, item_table, targets, **sampled)
        if self.loss == "ce-":
            return eager.ce_neg(hidden, item_table, targets, self.negatives or 1, **sampled)
        sampled["compute_dtype"] = self.compute_dtype
        return chunked.cce_neg(hidden, item_table, targets, self.negatives or 1, **sampled)

    def _triton(self, hidden: Tensor, item_table: Tensor, targets: Tensor, **sampled: Any) -> Tensor:
        """Hidden states are cast here: under autocast a norm leaves them in fp32."""
        from srsplan.kernels.full_softmax.api import cce_triton
        from srsplan.kernels.sampled_softmax.api import cce_neg_triton  # Triton is not installed everywhere

        hidden = hidden.to(self.compute_dtype or hidden.dtype)
        if self.loss == "cce":
            return cce_triton(hidden, item_table, targets)
        return cce_neg_triton(hidden, item_table, targets, self.negatives or 1, **sampled)
