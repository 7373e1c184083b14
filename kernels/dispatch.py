"""Choice of the implementation of a loss: one callable that carries its own description.

`choose` returns a `LossCall`. Its `implementation` is both what is printed and what selects the function that a call
runs, so that the two cannot differ. Nothing is chosen silently: an implementation that cannot run is an error that says
why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from srsplan.kernels import bucket_softmax, eager
from srsplan.kernels.chunked_autograd import BackwardScale
from srsplan.kernels.full_softmax import api as full_softmax
from srsplan.kernels.launches.sizes import refused_size
from srsplan.kernels.losses import (
    BCE,
    CALIBRATION,
    CCE,
    CCE_NEG,
    CE,
    CE_NEG,
    CHUNKED,
    EAGER,
    GBCE,
    LOSSES,
    SCE,
    TRITON,
    Loss,
)
from srsplan.kernels.sampled_softmax import api as sampled_softmax
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.in_batch import InBatch, in_batch
from srsplan.kernels.samplers.mixed import mixed
from srsplan.kernels.samplers.sampling import Sampling

Implementation = Literal["auto", "chunked", "triton"]
"""The implementations that a user may ask for; "auto" leaves it to `choose`."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The options of a loss, everything but its tensors."""

    negatives: int | None = None
    """Negatives drawn per set; a sampled loss needs them, a full one ignores them."""
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    compute_dtype: torch.dtype | None = None
    """The type of the matrix products; without one that of autocast, or of the hidden states."""
    distribution: Distribution | InBatch | None = None
    """Distribution that negatives are drawn by; None draws uniformly."""
    in_batch: bool = False
    """True where negatives are drawn from the targets of the batch."""
    in_batch_share: float | None = None
    """With `in_batch`: the share of a set's negatives that comes from there, beside uniform ones; None: all of them."""
    calibration: float = CALIBRATION
    """The calibration t of `gbce`."""
    backward_scale: BackwardScale = None
    """The incoming gradient of the call's loss, where it is known: the chunked forms then add the table's gradient to
    its `.grad` in place (kernels.chunked_autograd). The others leave it to autograd, with equal gradients."""


@dataclass(frozen=True, kw_only=True)
class LossCall:
    """A loss that is ready to run, and what it says of itself."""

    loss: Loss
    implementation: str
    """One of EAGER, CHUNKED, TRITON: what is printed, and the key of the function that runs."""
    reason: str
    options: LossOptions

    def __post_init__(self) -> None:
        if self.implementation not in FUNCTIONS[self.loss]:
            raise ValueError(f"{self.loss.name} has no {self.implementation}: it has {', '.join(FUNCTIONS[self.loss])}")
        if self.loss.sampled and self.options.negatives is None:
            raise ValueError(f"{self.loss.name} needs a number of negatives")

    def __call__(
        self, hidden: Tensor, item_table: Tensor, targets: Tensor, batch_targets: Tensor | InBatch | None = None
    ) -> Tensor:
        """Return the mean loss over targets: hidden [M, D], item_table [V, D], targets int64 [M].

        With `in_batch` negatives are drawn from `batch_targets`, those of the whole batch, int64 [N] on the device; the
        call's own without them. Calls over parts of a batch share what `source` makes of them.
        """
        options = self.options
        if options.in_batch:
            drawn_from = targets if batch_targets is None else batch_targets
            if isinstance(drawn_from, Tensor):
                drawn_from = self.source(drawn_from, len(item_table))
            options = replace(options, distribution=drawn_from)
        return FUNCTIONS[self.loss][self.implementation](options, hidden, item_table, targets)

    def source(self, batch_targets: Tensor, catalog: int) -> InBatch:
        """Return what calls over parts of a batch draw from, with `in_batch`: its targets, int64 [N] on the device."""
        share = self.options.in_batch_share
        if share is None:
            return in_batch(batch_targets, catalog)
        return mixed(batch_targets, catalog, self.options.negatives or 1, share)

    def at(
        self,
        step: int,
        first_token: int = 0,
        batch_tokens: int | None = None,
        *,
        backward_scale: BackwardScale = None,
    ) -> LossCall:
        """Return the same call at training step `step`, for tokens from `first_token` on of a batch of `batch_tokens`.

        However a batch is cut into such calls, the sum of their losses, each times M / N, and of its gradients is that
        of one call. `backward_scale` is that of `LossOptions`: the incoming gradient of the loss, with M / N in it.
        """
        options = self.options
        sampling = replace(options.sampling, step=step, first_token=first_token, batch_tokens=batch_tokens)
        return replace(self, options=replace(options, sampling=sampling, backward_scale=backward_scale))

    def at_step(self, step: int) -> LossCall:
        """Return the same call with the negatives of training step `step`, for a batch that is run in one call."""
        return self.at(step)

    def description(self) -> dict[str, str]:
        """Return the loss, its implementation and the reason for it, as a run's files keep them."""
        return {"loss": self.loss.name, "implementation": self.implementation, "reason": self.reason}


def choose(
    loss: str,
    device: torch.device,
    implementation: Implementation = "auto",
    options: LossOptions = LossOptions(),
    *,
    dim: int | None = None,
    reason: str = "",
) -> LossCall:
    """Return the call that computes `loss` on `device`; KeyError for a loss that is not in the registry.

    "auto" takes eager PyTorch for losses that keep all logits, and the chunked form of the others: whether the Triton
    kernels are right and faster on a card is found out by kernels.verification, and a caller that knows asks for
    "triton" with the verdict as its `reason`, which is what the call then says of itself. An implementation that the
    loss does not have, or that cannot run for the device, the hidden size `dim` or the compute type, is a ValueError
    with the reason; so are missing negatives.
    """
    kind = LOSSES[loss]
    if implementation == "triton":
        refuse_triton(kind, device, dim, options.compute_dtype)
        found = TRITON, reason or "asked for, and not checked: `srsplan doctor` does that"
    elif kind.chunked:
        why = "asked for" if implementation == "chunked" else "the Triton kernels were not checked here"
        found = CHUNKED, reason or f"{why}; same loss and gradients on {device.type}"
    elif implementation == "chunked":
        raise ValueError(f"{loss} has no chunked form: {_having(CHUNKED)} have")
    else:
        found = EAGER, "the only form" if kind.bucketed else "the plain form, all logits in memory"
    return LossCall(loss=kind, implementation=found[0], reason=found[1], options=options)


def refuse_triton(
    loss: Loss, device: torch.device, dim: int | None = None, compute_dtype: torch.dtype | None = None
) -> None:
    """Raise ValueError with the reason where the Triton kernels cannot run."""
    if TRITON not in FUNCTIONS[loss]:
        raise ValueError(f"{loss.name} has no Triton kernel: {_having(TRITON)} have")
    if find_spec("triton") is None:
        raise ValueError(
            "Triton is not installed (there is none for Windows and macOS): the chunked form runs everywhere"
        )
    if device.type not in ("cuda", "meta"):
        raise ValueError(f"Triton kernels run on CUDA, not on {device.type}: the chunked form runs everywhere")
    if dim is not None and (reason := refused_size(dim, compute_dtype == torch.float32)):
        raise ValueError(f"{reason}: the chunked form takes any")


def _having(implementation: str) -> str:
    return " and ".join(loss.name for loss, functions in FUNCTIONS.items() if implementation in functions)


Function: TypeAlias = Callable[[LossOptions, Tensor, Tensor, Tensor], Tensor]


def _ce(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return eager.ce(hidden, item_table, targets)


def _bce(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return eager.bce(hidden, item_table, targets, **_drawn(options))


def _gbce(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return eager.gbce(hidden, item_table, targets, calibration=options.calibration, **_drawn(options))


def _sce(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return bucket_softmax.sce(hidden, item_table, targets, options.negatives or 1, sampling=options.sampling)


def _ce_neg(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return eager.ce_neg(hidden, item_table, targets, **_drawn(options))


def _cce(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return full_softmax.cce(hidden, item_table, targets, **_chunked(options))


def _cce_neg(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return sampled_softmax.cce_neg(hidden, item_table, targets, **_drawn(options), **_chunked(options))


def _cce_triton(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return full_softmax.cce_triton(_cast(options, hidden), item_table, targets)


def _cce_neg_triton(options: LossOptions, hidden: Tensor, item_table: Tensor, targets: Tensor) -> Tensor:
    return sampled_softmax.cce_neg_triton(_cast(options, hidden), item_table, targets, **_drawn(options))


def _drawn(options: LossOptions) -> dict[str, Any]:
    """Return the arguments that every loss with negatives takes."""
    return {"negatives": options.negatives, "sampling": options.sampling, "distribution": options.distribution}


def _chunked(options: LossOptions) -> dict[str, Any]:
    """Return the arguments that every chunked form takes."""
    return {"compute_dtype": options.compute_dtype, "backward_scale": options.backward_scale}


def _cast(options: LossOptions, hidden: Tensor) -> Tensor:
    """Return the hidden states in the compute type: under autocast a norm leaves them in fp32."""
    return hidden.to(options.compute_dtype or hidden.dtype)


FUNCTIONS: Mapping[Loss, Mapping[str, Function]] = {
    CE: {EAGER: _ce},
    CE_NEG: {EAGER: _ce_neg},
    CCE: {CHUNKED: _cce, TRITON: _cce_triton},
    CCE_NEG: {CHUNKED: _cce_neg, TRITON: _cce_neg_triton},
    BCE: {EAGER: _bce},
    GBCE: {EAGER: _gbce},
    SCE: {EAGER: _sce},
}
"""The functions of every loss by implementation: the only place where the registry meets code."""
