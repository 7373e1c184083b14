"""Autograd around a loss that is computed a chunk of tokens at a time: shared by both chunked losses.

Shape letters: M tokens, V items, D hidden size.

Forward computes the gradients beside the loss while a chunk's probabilities are at hand (three matrix products instead
of the four of a recomputing backward); backward only multiplies them by the incoming scalar. With reduction "none" the
weights are not known before backward, which then runs the chunks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srsplan.kernels.reduction import Reduction, check_reduction


@dataclass(frozen=True)
class Tokens:
    """The tokens a chunked loss runs over: hidden [M, D], targets [M], how ignored ones are marked, the chunk size."""

    hidden: Tensor
    targets: Tensor
    ignore_index: int
    chunk: int

    @property
    def keep(self) -> Tensor:
        """Mask of the tokens that count, bool [M]."""
        return self.targets != self.ignore_index

    @property
    def safe_targets(self) -> Tensor:
        """Targets with ignored ones replaced by item 0, so that they can be looked up."""
        return torch.where(self.keep, self.targets, 0)


@dataclass(frozen=True)
class LossesAndGradients:
    """Losses fp32 [M], and, where weights were given, both gradients."""

    losses: Tensor
    grad_hidden: Tensor | None = None
    grad_table: Tensor | None = None


RunChunks = Callable[[Tokens, "Tensor | None"], LossesAndGradients]
"""Losses of all tokens, and with weights fp32 [M] the gradients of their weighted sum."""


class GradientSums:
    """Both gradients while chunks are added; fp32 for the table, `hidden`'s type for hidden.

    Weights are split into a scale and relative weights up to 1: a mean over a million tokens would underflow in fp16.
    """

    def __init__(self, hidden: Tensor, table: Tensor, weights: Tensor) -> None:
        self.hidden = torch.empty_like(hidden)
        self.table = torch.zeros_like(table, dtype=torch.float32)
        self.scale = weights.abs().max() if len(weights) else weights.sum()
        self.relative = weights / self.scale.clamp(min=torch.finfo(torch.float32).tiny)


def chunked_loss(hidden: Tensor, item_table: Tensor, tokens: Tokens, run: RunChunks, reduction: Reduction) -> Tensor:
    """Return the reduced loss of a chunked run, with autograd; `tokens` holds `hidden` detached."""
    check_reduction(reduction)
    keep = tokens.keep
    grad = torch.is_grad_enabled() and (hidden.requires_grad or item_table.requires_grad)
    weights = keep.float()
    if reduction == "mean":
        weights = weights / keep.sum().clamp(min=1)
    in_forward = weights if grad and reduction != "none" else None
    losses: Tensor = _ChunkedLoss.apply(hidden, item_table, tokens, run, in_forward)
    if reduction == "none":
        return torch.where(keep, losses, 0.0)
    return losses.sum() if in_forward is not None else (losses * weights).sum()


def product_dtype(hidden: Tensor, compute_dtype: torch.dtype | None) -> torch.dtype:
    """Return the type of the matrix products: the one asked for, else autocast's where it is on, else `hidden`'s."""
    if compute_dtype is not None:
        return compute_dtype
    kind = hidden.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


class _ChunkedLoss(torch.autograd.Function):
    """Autograd around a chunked run; the gradients come from forward, or for reduction "none" from backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, item_table: Tensor, tokens: Tokens, run: RunChunks, weights: Tensor | None
    ) -> Tensor:
        done = _without_autocast(run, tokens, weights)
        ctx.tokens, ctx.run, ctx.weights = tokens, run, weights
        ctx.grads = (done.grad_hidden, done.grad_table)
        return done.losses if weights is None else done.losses * weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_table = ctx.grads
        ctx.grads = (None, None)
        if grad_hidden is None:  # reduction "none", or a second backward
            weights = grad_losses if ctx.weights is None else grad_losses * ctx.weights
            done = _without_autocast(ctx.run, ctx.tokens, torch.where(ctx.tokens.keep, weights, 0.0))
            return done.grad_hidden, done.grad_table, None, None, None
        if len(grad_losses):  # the gradient of a sum: one scalar for all
            grad_hidden.mul_(grad_losses[0])
            grad_table.mul_(grad_losses[0])
        return grad_hidden, grad_table, None, None, None


def _without_autocast(run: RunChunks, tokens: Tokens, weights: Tensor | None) -> LossesAndGradients:
    """Run the chunks in the types they chose: autocast must not change them once more."""
    kind = tokens.hidden.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return run(tokens, weights)
    with torch.autocast(kind, enabled=False):
        return run(tokens, weights)
