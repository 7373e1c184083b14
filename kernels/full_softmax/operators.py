"""The Triton full softmax as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size.

Memory contract. Forward: losses and log-sum-exps, fp32 [M] each; where the table wants a gradient, one byte per block
of rows (128, fewer above D 512 and in fp32) and span of 256 items; where hidden does, [M, D] in its type, kept for
backward. Where blocks of rows would leave a card partly idle the catalog is split, and fp32 [splits, M, D] (at most 64
MiB) and [splits + 1, M] live during forward. Backward: for the table four numbers a token, one fp32 [V, D] and, beside
16-bit hidden states, a copy of an fp32 table in their type, which forward holds as well; then the gradient of hidden in
its type. What wants no gradient takes nothing. Never [M, V].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from srsplan.kernels.debug import check_targets
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
    hidden_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return losses and log-sum-exps, fp32 [M]; which spans matter, int8 [spans, blocks]; and directions.

    Directions, the mean of the other items' rows by their softmax less the target's row, are [M, D] in hidden's type
    with `hidden_grad`, otherwise [0, D]; without `table_grad` there are no spans, [0, blocks].
    """
    check_targets(targets, len(item_table), ignore_index)
    call = _Call(hidden, item_table, hidden_grad)
    losses, lse, spans, directions = call.outputs(table_grad)
    if not len(hidden):
        return losses, lse, spans, directions
    partials, positives, parts = call.split_outputs(losses, directions)
    table = item_table.to(hidden.dtype)

    def run(launch: Launch) -> None:
        kernels.softmax_forward[(call.blocks, call.splits)](
            hidden, table, targets, losses, lse, parts, partials, positives, spans, len(hidden), call.catalog,
            call.split_items, log_filter, ignore_index,
            GRAD=hidden_grad, SPLIT=call.splits > 1, SPANS=table_grad, **call.options(launch),
        )  # fmt: skip

    with torch.cuda.device_of(hidden):
        run(call.launch(call.forward, run))
        if call.splits > 1:
            kernels.softmax_join[(triton.cdiv(len(hidden), JOIN_ROWS),)](
                table, targets, partials, positives, parts, losses, lse, directions, len(hidden), call.splits,
                ignore_index, GRAD=hidden_grad, **call.rows_options(),
            )  # fmt: skip
    return losses, lse, spans, directions


@full_softmax.register_fake
def full_softmax_fake(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    ignore_index: int,
    log_filter: float,
    hidden_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate what the operator does, in its order, and keep it as long."""
    call = _Call(hidden, item_table, hidden_grad)
    losses, lse, spans, directions = call.outputs(table_grad)
    during = call.split_outputs(losses, directions)
    table = item_table.to(hidden.dtype)
    del during, table
    return losses, lse, spans, directions


@torch.library.custom_op("srsplan::full_softmax_backward", mutates_args=())
def full_softmax_backward(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    losses: Tensor,
    lse: Tensor,
    spans: Tensor,
    directions: Tensor,
    weights: Tensor,
    ignore_index: int,
    hidden_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of sum(weights x losses): of hidden [M, D] in its type, and of the table, fp32 [V, D].

    One that is not asked for is [0, D]. RuntimeError where forward was told that it would not be.
    """
    call = _Call(hidden, item_table, len(directions) > 0)
    _check_kept(call, hidden, directions, spans, (hidden_grad, table_grad))
    grad_table = call.grad_table(item_table, table_grad)
    if not len(hidden):
        return torch.empty_like(hidden), grad_table.zero_()
    with torch.cuda.device_of(hidden):
        if table_grad:
            _fill_grad_table(call, grad_table, hidden, item_table, (targets, losses, lse, weights), spans, ignore_index)
        grad_hidden = call.grad_hidden(hidden_grad)
        if hidden_grad:
            kernels.scale_rows[(triton.cdiv(len(hidden), JOIN_ROWS),)](
                directions, losses, weights, grad_hidden, len(hidden), **call.rows_options()
            )
    return grad_hidden, grad_table


def _check_kept(call: _Call, hidden: Tensor, directions: Tensor, spans: Tensor, wanted: tuple[bool, bool]) -> None:
    """Raise RuntimeError where forward has not kept what a gradient is made of."""
    if (wanted[0] and len(directions) != len(hidden)) or (wanted[1] and len(spans) != call.spans):
        raise RuntimeError("full_softmax was told that a gradient is not wanted, and it is")


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
                call.catalog, SPAN_ROWS=call.span_rows, SPARSE=sparse, **call.options(launch),
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
    directions: Tensor,
    weights: Tensor,
    ignore_index: int,
    hidden_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Allocate what the operator does, in its order, and keep it as long."""
    call = _Call(hidden, item_table, True)
    grad_table = call.grad_table(item_table, table_grad)
    if table_grad:
        during = (item_table.to(hidden.dtype), hidden.new_empty((4, call.padded), dtype=torch.float32))
        del during
    return call.grad_hidden(hidden_grad), grad_table


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, item_table, targets, ctx.ignore_index, *_ = inputs
    ctx.save_for_backward(hidden, item_table, targets, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as they are


def _backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Any, ...]:
    tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[:2]
    grads = full_softmax_backward(*tensors, grad_losses.contiguous(), ctx.ignore_index, *wanted)
    grad_hidden = grads[0] if wanted[0] else None
    return grad_hidden, grads[1].to(tensors[1].dtype) if wanted[1] else None, *[None] * 5


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

    def outputs(self, table_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make losses, lse, spans, directions; not filled."""
        tokens, dim = self._hidden.shape
        losses, lse = (self._hidden.new_empty(tokens, dtype=torch.float32) for _ in range(2))
        spans = self._hidden.new_empty((self.spans if table_grad else 0, self.blocks), dtype=torch.int8)
        return losses, lse, spans, self._hidden.new_empty((tokens if self._with_grad else 0, dim))

    def grad_hidden(self, wanted: bool) -> Tensor:
        """Make the gradient of hidden, [M, D] in its type; [0, D] where it is not wanted. Not filled."""
        return self._hidden.new_empty((self._hidden.shape[0] if wanted else 0, self._hidden.shape[1]))

    def grad_table(self, item_table: Tensor, wanted: bool) -> Tensor:
        """Make the gradient of the table, fp32 [V, D]; [0, D] where it is not wanted. Not filled."""
        return item_table.new_empty((self.catalog if wanted else 0, item_table.shape[1]), dtype=torch.float32)

    def split_outputs(self, losses: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make partials, positives, parts; any tensors where there is one split, which writes to the outputs."""
        if self.splits == 1:
            return losses, losses, directions
        tokens, dim = self._hidden.shape
        partials = self._hidden.new_empty((self.splits, tokens), dtype=torch.float32)
        positives = self._hidden.new_empty(tokens, dtype=torch.float32)
        if not self._with_grad:
            return partials, positives, directions
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
