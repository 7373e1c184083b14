"""Autograd around a loss that is computed a chunk of tokens at a time: shared by both chunked losses.

Shape letters: M tokens, V items, D hidden size.

Forward computes the gradients beside the loss while a chunk's probabilities are at hand (three matrix products instead
of the four of a recomputing backward); backward only multiplies them by the incoming scalar. With reduction "none" the
weights are not known before backward, which then runs the chunks again; so does a second backward through a graph that
is kept, whose gradients all pass through autograd.

A table's gradient of its own is a [V, D] that autograd adds to the one of the calls before: two at once where a batch
is run in several calls. A caller that knows what the incoming scalar will be says so (`backward_scale`), and forward
adds to `item_table.grad` in place. That part of the gradient does not pass through autograd: no hook sees it, and a
forward whose loss is never run backward has added it all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose
from typing import Any, TypeAlias

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


BackwardScale: TypeAlias = "float | Tensor | None"
"""What autograd's gradient of a call's loss will be, where it is known before: a number or a 0-d fp32 tensor."""


@dataclass(frozen=True)
class Wanted:
    """The gradients to compute beside the losses: those of the losses' sum weighted by `weights`, fp32 [M].

    With `into`, fp32 [V, D], the table's is added there, times `scale`; without, it goes to a tensor of its own.
    """

    weights: Tensor
    into: Tensor | None = None
    scale: float | Tensor = 1.0


RunChunks = Callable[[Tokens, "Wanted | None"], LossesAndGradients]
"""Losses of all tokens, and the gradients that are wanted."""


class GradientSums:
    """Both gradients while chunks are added; fp32 for the table, `hidden`'s type for hidden, which is left to fill.

    Weights are split into a scale and relative weights up to 1: a mean over a million tokens would underflow in fp16.
    `table_scale` is the scale of what is added to the table's gradient.
    """

    def __init__(self, hidden: Tensor, table: Tensor, wanted: Wanted) -> None:
        self.hidden = torch.empty_like(hidden)
        self._in_place = wanted.into is not None
        self.table = torch.zeros_like(table, dtype=torch.float32) if wanted.into is None else wanted.into
        weights = wanted.weights
        self.scale = weights.abs().max() if len(weights) else weights.sum()
        self.relative = weights / self.scale.clamp(min=torch.finfo(torch.float32).tiny)
        self.table_scale = self.scale if wanted.into is None else self.scale * wanted.scale

    def with_losses(self, losses: Tensor) -> LossesAndGradients:
        """Return what a run returns: the table's gradient only where it is a tensor of its own."""
        return LossesAndGradients(losses, self.hidden, None if self._in_place else self.table)


def chunked_loss(
    hidden: Tensor,
    item_table: Tensor,
    tokens: Tokens,
    run: RunChunks,
    reduction: Reduction,
    backward_scale: BackwardScale = None,
) -> Tensor:
    """Return the reduced loss of a chunked run, with autograd; `tokens` holds `hidden` detached.

    With `backward_scale` the table's gradient is in `item_table.grad` when this returns. ValueError where it cannot be.
    """
    check_reduction(reduction)
    if backward_scale is not None:
        _check_leaf(item_table, reduction)
    keep = tokens.keep
    grad = torch.is_grad_enabled() and (hidden.requires_grad or item_table.requires_grad)
    weights = keep.float()
    if reduction == "mean":
        weights = weights / keep.sum().clamp(min=1)
    wanted = None
    if grad and reduction != "none":
        wanted = Wanted(weights)
        if backward_scale is not None and item_table.requires_grad:
            wanted = Wanted(weights, _grad_of(item_table), backward_scale)
    losses: Tensor = _ChunkedLoss.apply(hidden, item_table, tokens, run, wanted)
    if reduction == "none":
        return torch.where(keep, losses, 0.0)
    return losses.sum() if wanted is not None else (losses * weights).sum()


def _check_leaf(item_table: Tensor, reduction: Reduction) -> None:
    if not item_table.is_leaf or item_table.dtype != torch.float32:
        raise ValueError("backward_scale needs an fp32 leaf as the table: the gradient goes to its .grad")
    if reduction == "none":
        raise ValueError("backward_scale is that of one loss: reduction none has one for every token")


def _check_promise(found: Tensor, promised: BackwardScale) -> None:
    """Raise ValueError where the table's gradient was scaled by another number; a GPU is not waited for to see it."""
    if promised is not None and found.device.type == "cpu" and not isclose(found, promised, rel_tol=1e-3):
        raise ValueError(f"backward_scale was {float(promised):g}, and the loss was scaled by {float(found):g}")


def _grad_of(item_table: Tensor) -> Tensor:
    if item_table.grad is None:
        item_table.grad = torch.zeros_like(item_table)
    return item_table.grad


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
        ctx: Any, hidden: Tensor, item_table: Tensor, tokens: Tokens, run: RunChunks, wanted: Wanted | None
    ) -> Tensor:
        done = _without_autocast(run, tokens, wanted)
        ctx.tokens, ctx.run, ctx.weights = tokens, run, None if wanted is None else wanted.weights
        ctx.read = tokens.hidden, item_table.detach()  # they count changes together with what they are views of
        ctx.versions = [each._version for each in ctx.read]
        ctx.grads = (done.grad_hidden, done.grad_table)
        ctx.promised = None if wanted is None or wanted.into is None else wanted.scale
        return done.losses if wanted is None else done.losses * wanted.weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_table = ctx.grads
        ctx.grads = (None, None)
        if grad_hidden is None:  # reduction "none", or a second backward
            if ctx.versions != [each._version for each in ctx.read]:
                raise RuntimeError(
                    "the loss is run backward again, and its hidden states or its table have changed since"
                )
            weights = grad_losses if ctx.weights is None else grad_losses * ctx.weights
            done = _without_autocast(ctx.run, ctx.tokens, Wanted(torch.where(ctx.tokens.keep, weights, 0.0)))
            return done.grad_hidden, done.grad_table, None, None, None
        if len(grad_losses):  # the gradient of a sum: one scalar for all
            _check_promise(grad_losses[0], ctx.promised)
            grad_hidden.mul_(grad_losses[0])
            if grad_table is not None:  # else it is where it belongs since forward
                grad_table.mul_(grad_losses[0])
        return grad_hidden, grad_table, None, None, None


def _without_autocast(run: RunChunks, tokens: Tokens, wanted: Wanted | None) -> LossesAndGradients:
    """Run the chunks in the types they chose: autocast must not change them once more."""
    kind = tokens.hidden.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return run(tokens, wanted)
    with torch.autocast(kind, enabled=False):
        return run(tokens, wanted)
