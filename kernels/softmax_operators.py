"""The Triton full softmax as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size.

Memory contract. Forward: losses, log-sum-exps and positive logits, fp32 [M] each; partial sums fp32 [splits, M], at
most 16 splits and 2^22 numbers or one split; one byte per block of rows (128, fewer above D 512 and in fp32) and span
of 256 items. Backward: the gradient of hidden in its type, one fp32 [V, D] and four numbers a token; with fewer than
132 blocks of rows up to 16 fp32 [M, D] more. With `copy_table` a copy of the table in hidden's type lives during
either. Never [M, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from srsplan.kernels import triton_softmax as kernels
from srsplan.kernels.autotune import Key, launch_on
from srsplan.kernels.tuning import SPAN_ITEMS, Launch, capability_of, launch_for, softmax_table

MOST_SPLITS = 16
PARTIAL_ELEMENTS = 1 << 22
WANTED_PROGRAMS = 1024
"""Enough to fill any card: with fewer blocks of rows the catalog is split."""
FEW_PROGRAMS = 264
"""Two for each multiprocessor of the largest card; the gradient of hidden is made in parts where blocks are fewer."""
STATE_ROWS = 128
"""Tokens of a program that prepares backward; no block of rows is larger."""
TILES = {"softmax_forward": (32, 64, 128), "softmax_backward_hidden": (32, 64), "softmax_backward_table": (64, 128)}
"""What autotuning tries."""


@torch.library.custom_op("srsplan::full_softmax", mutates_args=())
def full_softmax(
    hidden: Tensor, item_table: Tensor, targets: Tensor, ignore_index: int, log_filter: float, copy_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """losses and log-sum-exps, fp32 [M], and which spans matter, int8 [blocks, spans]."""
    call = _Call(hidden, item_table)
    losses, sums, positives = (hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(3))
    spans = hidden.new_zeros(call.span_blocks, call.spans, dtype=torch.int8)
    if not len(hidden):
        return losses, sums, spans
    partials = hidden.new_empty(call.splits, len(hidden), dtype=torch.float32)
    table = item_table.to(hidden.dtype) if copy_table else item_table

    def run(launch: Launch) -> None:
        kernels.softmax_forward[(call.span_blocks, call.splits)](
            hidden, table, targets, positives, partials, spans, len(hidden), call.catalog, call.split_items, call.spans,
            log_filter, ignore_index, **call.options(launch),
        )  # fmt: skip

    run(call.launch("softmax_forward", run))
    sums = torch.logaddexp(torch.logsumexp(partials, 0), positives)
    keep = targets != ignore_index
    return torch.where(keep, sums - positives, 0.0), sums, spans


@full_softmax.register_fake
def full_softmax_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, ignore_index: int, log_filter: float, copy_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocates what the operator does, in its order, and keeps it as long."""
    call = _Call(hidden, item_table)
    first, second, positives = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3))
    spans = hidden.new_empty((call.span_blocks, call.spans), dtype=torch.int8)
    partials = hidden.new_empty((call.splits, hidden.shape[0]), dtype=torch.float32)
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
    if not len(hidden):
        return torch.zeros_like(hidden), torch.zeros_like(item_table, dtype=torch.float32)
    call = _Call(hidden, item_table)
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.float32)
    table = item_table.to(hidden.dtype) if copy_table else item_table
    parts = hidden.new_empty(call.parts, *hidden.shape, dtype=torch.float32 if call.parts > 1 else hidden.dtype)
    scale, live = weights.abs().max(), spans.sum()
    state = hidden.new_empty(4, call.padded, dtype=torch.float32)
    kernels.softmax_state[(call.padded // STATE_ROWS,)](
        targets, losses, sums, weights, scale, state, len(hidden), call.padded, ignore_index,
        ROWS=STATE_ROWS, FP32=hidden.dtype == torch.float32,
    )  # fmt: skip
    inputs = (hidden, table, state, scale, spans, live, int(kernels.SPARSE_SHARE * spans.numel()))

    def run_hidden(launch: Launch) -> None:
        for sparse in (False, True):
            kernels.softmax_backward_hidden[(call.blocks, call.parts)](
                *inputs, parts, len(hidden), call.padded, call.catalog, call.part_items, call.spans,
                SPAN_ROWS=call.span_rows, SPARSE=sparse, **call.options(launch),
            )  # fmt: skip

    def run_table(launch: Launch) -> None:
        for sparse in (False, True):
            kernels.softmax_backward_table[(triton.cdiv(call.catalog, launch.tile),)](
                *inputs, grad_table, len(hidden), call.padded, call.catalog, call.spans,
                SPAN_ROWS=call.span_rows, SPARSE=sparse, **call.options(launch),
            )  # fmt: skip

    run_hidden(call.launch("softmax_backward_hidden", run_hidden))
    run_table(call.launch("softmax_backward_table", run_table))
    return (parts[0] if call.parts == 1 else parts.sum(0).to(hidden.dtype)), grad_table


@full_softmax_backward.register_fake
def full_softmax_backward_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, losses: Tensor, sums: Tensor, spans: Tensor, weights: Tensor,
    ignore_index: int, copy_table: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocates what the operator does, in its order, and keeps it as long."""
    call = _Call(hidden, item_table)
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.float32)
    table = item_table.new_empty(item_table.shape, dtype=hidden.dtype) if copy_table else item_table
    one = call.parts == 1 or not len(hidden)
    parts = hidden.new_empty((call.parts, *hidden.shape), dtype=hidden.dtype if one else torch.float32)
    state = hidden.new_empty((4, call.padded), dtype=torch.float32)
    grad_hidden = parts[0] if one else parts.sum(0).to(hidden.dtype)
    del table, state
    return grad_hidden, grad_table


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


class _Call:
    """How a call is cut into programs."""

    def __init__(self, hidden: Tensor, item_table: Tensor) -> None:
        tokens, self.catalog = hidden.shape[0], item_table.shape[0]
        self._hidden, self._capability = hidden, capability_of(hidden.device)
        self.span_rows, rows = self._default("softmax_forward").tokens, self._default("softmax_backward_hidden").tokens
        self.span_blocks, self.blocks = -(-tokens // self.span_rows), -(-tokens // rows)
        self.spans, self.padded = -(-self.catalog // SPAN_ITEMS), -(-tokens // STATE_ROWS) * STATE_ROWS
        room = max(1, PARTIAL_ELEMENTS // max(1, tokens))
        self.split_items = self._cut(min(room, -(-WANTED_PROGRAMS // max(1, self.span_blocks))))
        self.splits = -(-self.catalog // self.split_items)
        self.part_items = self._cut(1 if 2 * self.blocks > FEW_PROGRAMS else -(-FEW_PROGRAMS // max(1, self.blocks)))
        self.parts = -(-self.catalog // self.part_items)

    def launch(self, kernel: str, run: Callable[[Launch], object]) -> Launch:
        """The table's launch, or what autotuning found."""
        key = Key(kernel=kernel, dim=self._hidden.shape[1], dtype=str(self._hidden.dtype))
        return launch_on(self._hidden.device, key, self._default(kernel), run, TILES[kernel])[0]

    def options(self, launch: Launch) -> dict[str, Any]:
        """Compile-time arguments."""
        dim = self._hidden.shape[1]
        return {
            "DIM": dim,
            "WIDTH": max(16, triton.next_power_of_2(dim)),
            "ROWS": launch.tokens,
            "TILE": launch.tile,
            "SPAN_TILES": SPAN_ITEMS // launch.tile,
            "PRECISION": "ieee",
            "num_warps": launch.warps,
            "num_stages": launch.stages,
        }

    def _default(self, kernel: str) -> Launch:
        fp32 = self._hidden.dtype == torch.float32
        return launch_for(softmax_table(kernel, self._capability, fp32), self._hidden.shape[1])

    def _cut(self, wanted: int) -> int:
        """Items of a part where there are to be so many: whole spans."""
        return -(-self.spans // min(MOST_SPLITS, self.spans, wanted)) * SPAN_ITEMS
