"""The Triton full softmax as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size.

Memory contract. Forward: losses and log-sum-exps, fp32 [M] each; one byte per block of rows (128, fewer above D 512 and
in fp32) and span of 256 items; where hidden wants a gradient, [M, D] in its type, kept for backward. Where blocks of
rows would leave a card partly idle the catalog is split, and fp32 [splits, M, D] (at most 64 MiB) and [splits + 1, M]
live during forward. Backward: four numbers a token and one fp32 [V, D], then the gradient of hidden in its type. Beside
16-bit hidden states a copy of an fp32 table in their type lives during either. Never [M, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from srsplan.kernels.full_softmax import kernel as kernels
from srsplan.kernels.full_softmax.grid import STATE_ROWS, SoftmaxGrid
from srsplan.kernels.launches.autotune import Form
from srsplan.kernels.launches.call import launch_options, row_options, tuned_launch
from srsplan.kernels.launches.device import capability_of
from srsplan.kernels.launches.table import SPAN_ITEMS, Launch, launch_for, softmax_table

JOIN_ROWS = 8
"""Tokens of a program that joins splits or scales rows."""
TUNED_BLOCK_N = {"softmax_forward": (32, 64, 128), "softmax_backward_table": (64, 128)}
"""Items of a tile that autotuning tries."""


@torch.library.custom_op("srsplan::full_softmax", mutates_args=())
def full_softmax(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    ignore_index: int,
    log_filter: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses and log-sum-exps, fp32 [M]; which spans matter, int8 [blocks, spans]; and row gradients.

    Row gradients, (softmax - one-hot) times the table, are [M, D] in hidden's type with `with_grad`, otherwise [0, D].
    """
    call = _Call(hidden, item_table, with_grad)
    losses, lse, spans, row_grads = call.outputs()
    if not len(hidden):
        return losses.zero_(), lse.zero_(), spans, row_grads
    partials, positives, parts = call.split_outputs(losses, row_grads)
    table = item_table.to(hidden.dtype)

    def run(launch: Launch) -> None:
        kernels.softmax_forward[(call.blocks, call.splits)](
            hidden, table, targets, losses, lse, parts, partials, positives, spans, len(hidden), call.catalog,
            call.split_items, call.spans, log_filter, ignore_index,
            GRAD=with_grad, SPLIT=call.splits > 1, **call.options(launch),
        )  # fmt: skip

    with torch.cuda.device_of(hidden):
        run(call.launch(call.forward, run))
        if call.splits > 1:
            kernels.softmax_join[(triton.cdiv(len(hidden), JOIN_ROWS),)](
                table, targets, partials, positives, parts, losses, lse, row_grads, len(hidden), call.splits,
                ignore_index, GRAD=with_grad, **call.rows_options(),
            )  # fmt: skip
    return losses, lse, spans, row_grads


@full_softmax.register_fake
def full_softmax_fake(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    ignore_index: int,
    log_filter: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate what the operator does, in its order, and keep it as long."""
    call = _Call(hidden, item_table, with_grad)
    losses, lse, spans, row_grads = call.outputs()
    during = call.split_outputs(losses, row_grads)
    table = item_table.to(hidden.dtype)
    del during, table
    return losses, lse, spans, row_grads


@torch.library.custom_op("srsplan::full_softmax_backward", mutates_args=())
def full_softmax_backward(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    losses: Tensor,
    lse: Tensor,
    spans: Tensor,
    row_grads: Tensor,
    weights: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of sum(weights x losses): of hidden, from its rows', and of the table, fp32 [V, D]."""
    call = _Call(hidden, item_table, len(row_grads) > 0)
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.float32)
    if not len(hidden):
        return torch.empty_like(row_grads), grad_table.zero_()
    with torch.cuda.device_of(hidden):
        _fill_grad_table(call, grad_table, hidden, item_table, (targets, losses, lse, weights), spans, ignore_index)
        grad_hidden = torch.empty_like(row_grads)
        if len(row_grads):
            kernels.scale_rows[(triton.cdiv(len(hidden), JOIN_ROWS),)](
                row_grads, weights, grad_hidden, len(hidden), **call.rows_options()
            )
    return grad_hidden, grad_table


def _fill_grad_table(
    call: _Call, grad_table: Tensor, hidden: Tensor, item_table: Tensor, per_token: tuple[Tensor, ...], spans: Tensor,
    ignore_index: int,
) -> None:  # fmt: skip
    """Fill grad_table; the temporaries are gone before hidden's gradient is made."""
    table = item_table.to(hidden.dtype)
    scale, live = per_token[-1].abs().max(), spans.sum()
    state = hidden.new_empty(4, call.padded, dtype=torch.float32)
    kernels.softmax_state[(call.padded // STATE_ROWS,)](
        *per_token, scale, state, len(hidden), call.padded, ignore_index,
        BLOCK_M=STATE_ROWS, FP32=hidden.dtype == torch.float32,
    )  # fmt: skip
    sparse_limit = int(kernels.SPARSE_SHARE * spans.numel())

    def run(launch: Launch) -> None:
        for sparse in (False, True):
            kernels.softmax_backward_table[(triton.cdiv(call.catalog, launch.block_n),)](
                hidden, table, state, scale, spans, live, sparse_limit, grad_table, len(hidden), call.padded,
                call.catalog, call.spans, SPAN_ROWS=call.span_rows, SPARSE=sparse, **call.options(launch),
            )  # fmt: skip

    run(call.launch("softmax_backward_table", run))


@full_softmax_backward.register_fake
def full_softmax_backward_fake(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    losses: Tensor,
    lse: Tensor,
    spans: Tensor,
    row_grads: Tensor,
    weights: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Allocate what the operator does, in its order, and keep it as long."""
    call = _Call(hidden, item_table, True)
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.float32)
    table = item_table.to(hidden.dtype)
    state = hidden.new_empty((4, call.padded), dtype=torch.float32)
    del table, state
    return torch.empty_like(row_grads), grad_table


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, item_table, targets, ctx.ignore_index, *_ = inputs
    ctx.save_for_backward(hidden, item_table, targets, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    grad_hidden, grad_table = full_softmax_backward(*tensors, grad_losses.contiguous(), ctx.ignore_index)
    wanted = grad_hidden if ctx.needs_input_grad[0] else None
    return wanted, grad_table.to(tensors[1].dtype), None, None, None, None


full_softmax.register_autograd(_backward, setup_context=_save)


class _Call:
    """A call cut into programs: blocks of rows, spans of items, splits of the catalog."""

    def __init__(self, hidden: Tensor, item_table: Tensor, with_grad: bool) -> None:
        self._hidden, self._with_grad = hidden, with_grad
        self._grid = SoftmaxGrid(
            tokens=hidden.shape[0], catalog=item_table.shape[0], dim=hidden.shape[1],
            fp32=hidden.dtype == torch.float32, capability=capability_of(hidden.device), with_grad=with_grad,
        )  # fmt: skip
        self.catalog, self.forward, self.span_rows = self._grid.catalog, self._grid.forward, self._grid.span_rows
        self.blocks, self.spans, self.padded = self._grid.blocks, self._grid.spans, self._grid.padded
        self.splits, self.split_items = self._grid.splits, self._grid.split_items

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make losses, lse, spans, row_grads; not filled."""
        tokens, dim = self._hidden.shape
        losses, lse = (self._hidden.new_empty(tokens, dtype=torch.float32) for _ in range(2))
        spans = self._hidden.new_empty((self.blocks, self.spans), dtype=torch.int8)
        return losses, lse, spans, self._hidden.new_empty((tokens if self._with_grad else 0, dim))

    def split_outputs(self, losses: Tensor, row_grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make partials, positives, parts; any tensors where there is one split, which writes to the outputs."""
        if self.splits == 1:
            return losses, losses, row_grads
        tokens, dim = self._hidden.shape
        partials = self._hidden.new_empty((self.splits, tokens), dtype=torch.float32)
        positives = self._hidden.new_empty(tokens, dtype=torch.float32)
        if not self._with_grad:
            return partials, positives, row_grads
        return partials, positives, self._hidden.new_empty((self.splits, tokens, dim), dtype=torch.float32)

    def launch(self, kernel: str, run: Callable[[Launch], object]) -> Launch:
        """Return the table's launch, or what autotuning found."""
        split = kernel == self.forward and self.splits > 1
        form = Form(table=str(self._hidden.dtype), with_grad=self._with_grad, split=split)
        return tuned_launch(kernel, self._hidden, self._default(kernel), run, form, TUNED_BLOCK_N.get(kernel, ()))[0]

    def options(self, launch: Launch) -> dict[str, Any]:
        """Return the compile-time arguments of the kernels that walk over tiles."""
        return {
            **row_options(self._hidden.shape[1]),
            **launch_options(launch),
            "BLOCK_M": launch.block_m,
            "SPAN_TILES": SPAN_ITEMS // launch.block_n,
        }

    def rows_options(self) -> dict[str, Any]:
        """Return the compile-time arguments of the kernels that work on rows one by one."""
        return {**row_options(self._hidden.shape[1]), "BLOCK_M": JOIN_ROWS}

    def _default(self, kernel: str) -> Launch:
        return launch_for(softmax_table(kernel, self._grid.capability, self._grid.fp32), self._grid.dim)
