"""The Triton full softmax as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size.

Memory contract. Forward: losses, log-sum-exps and positive logits, fp32 [M] each; partial sums fp32 [splits, M], at
most 16 splits and 2^22 numbers or one split; one byte per block of 32 rows and span of 256 items. Backward: the
gradient of hidden in its type and one fp32 [V, D]. With `copy_table` a copy of the table in hidden's type lives during
either. Never [M, V].
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from srsplan.kernels import triton_softmax as kernels
from srsplan.kernels.sampled_operators import TRITON_TYPES
from srsplan.kernels.tuning import SOFTMAX, launch_for

MOST_SPLITS = 16
PARTIAL_ELEMENTS = 1 << 22
WANTED_PROGRAMS = 1024
"""Enough to fill any card: with fewer blocks of rows the catalog is split."""


@torch.library.custom_op("srsplan::full_softmax", mutates_args=())
def full_softmax(
    hidden: Tensor, item_table: Tensor, targets: Tensor, ignore_index: int, log_filter: float, copy_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """losses and log-sum-exps, fp32 [M], and which spans matter, int8 [blocks, spans]."""
    sizes = _Sizes(hidden, item_table)
    losses, sums, positives = (hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(3))
    spans = hidden.new_zeros(sizes.blocks, sizes.spans, dtype=torch.int8)
    if not len(hidden):
        return losses, sums, spans
    partials = hidden.new_empty(sizes.splits, len(hidden), dtype=torch.float32)
    table = item_table.to(hidden.dtype) if copy_table else item_table
    kernels.softmax_forward[(sizes.blocks, sizes.splits)](
        hidden, table, targets, positives, partials, spans, len(hidden), sizes.catalog, sizes.split_items, sizes.spans,
        log_filter, ignore_index, **sizes.options,
    )  # fmt: skip
    sums = torch.logaddexp(torch.logsumexp(partials, 0), positives)
    keep = targets != ignore_index
    return torch.where(keep, sums - positives, 0.0), sums, spans


@full_softmax.register_fake
def full_softmax_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, ignore_index: int, log_filter: float, copy_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates what the operator does, in its order, and keeps it as long."""
    sizes = _Sizes(hidden, item_table)
    first, second, positives = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3))
    spans = hidden.new_empty((sizes.blocks, sizes.spans), dtype=torch.int8)
    partials = hidden.new_empty((sizes.splits, hidden.shape[0]), dtype=torch.float32)
    table = item_table.new_empty(item_table.shape, dtype=hidden.dtype) if copy_table else item_table
    sums = torch.logaddexp(torch.logsumexp(partials, 0), positives)
    losses = torch.where(targets != ignore_index, sums - positives, 0.0)
    del first, second, table
    return losses, sums, spans


@torch.library.custom_op("srsplan::full_softmax_backward", mutates_args=())
def full_softmax_backward(
    hidden: Tensor, item_table: Tensor, targets: Tensor, losses: Tensor, sums: Tensor, spans: Tensor, weights: Tensor,
    ignore_index: int, copy_table: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of sum(weights x losses): of hidden [M, D] in its type, of the table [V, D] in fp32."""
    grad_hidden, grad_table = torch.zeros_like(hidden), torch.zeros_like(item_table, dtype=torch.float32)
    if not len(hidden):
        return grad_hidden, grad_table
    sizes = _Sizes(hidden, item_table)
    table = item_table.to(hidden.dtype) if copy_table else item_table
    state = (targets, losses, sums, weights, weights.abs().max(), spans)
    counts = (len(hidden), sizes.catalog, sizes.spans, ignore_index)
    kernels.softmax_backward_hidden[(sizes.blocks,)](hidden, table, *state, grad_hidden, *counts, **sizes.options)
    tiles = triton.cdiv(sizes.catalog, sizes.launch.tile)
    kernels.softmax_backward_table[(tiles,)](hidden, table, *state, grad_table, *counts, **sizes.options)
    return grad_hidden, grad_table


@full_softmax_backward.register_fake
def full_softmax_backward_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, losses: Tensor, sums: Tensor, spans: Tensor, weights: Tensor,
    ignore_index: int, copy_table: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocates what the operator does, in its order, and keeps it as long."""
    grads = torch.empty_like(hidden), item_table.new_empty(item_table.shape, dtype=torch.float32)
    table = item_table.new_empty(item_table.shape, dtype=hidden.dtype) if copy_table else item_table
    del table
    return grads


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, item_table, targets, ignore_index, _, copy_table = inputs
    ctx.save_for_backward(hidden, item_table, targets, *output)
    ctx.ignore_index, ctx.copy_table = ignore_index, copy_table
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    grad_hidden, grad_table = full_softmax_backward(
        *tensors, grad_losses.contiguous(), ctx.ignore_index, ctx.copy_table
    )
    return grad_hidden, grad_table.to(tensors[1].dtype), None, None, None, None


full_softmax.register_autograd(_backward, setup_context=_save)


class _Sizes:
    """How a call is cut into programs."""

    def __init__(self, hidden: Tensor, item_table: Tensor) -> None:
        self.launch = launch_for(SOFTMAX, hidden.shape[1])
        tokens, self.catalog = hidden.shape[0], item_table.shape[0]
        span_items = self.launch.tile * kernels.SPAN
        self.blocks, self.spans = -(-tokens // self.launch.tokens), -(-self.catalog // span_items)
        room = max(1, PARTIAL_ELEMENTS // max(1, tokens))
        wanted = min(MOST_SPLITS, room, self.spans, -(-WANTED_PROGRAMS // max(1, self.blocks)))
        self.split_items = -(-self.spans // wanted) * span_items
        self.splits = -(-self.catalog // self.split_items)
        self.options = {
            "DIM": hidden.shape[1],
            "WIDTH": max(16, 1 << (hidden.shape[1] - 1).bit_length()),
            "ROWS": self.launch.tokens,
            "TILE": self.launch.tile,
            "SPAN_ITEMS": span_items,
            "COMPUTE": TRITON_TYPES.get(hidden.dtype, tl.float32),
            "PRECISION": "ieee",
            "num_warps": self.launch.warps,
            "num_stages": self.launch.stages,
        }
