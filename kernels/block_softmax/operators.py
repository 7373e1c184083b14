"""The Triton sampled softmax with negatives in blocks as custom operators: autograd and fake implementations.

Shape letters: M tokens, V items, D hidden size.

Memory contract. Forward: losses and shifts, fp32 [M] each; the direction of hidden's gradient, [M, D] in hidden's type;
while it runs the step's permutation, int32 [V], and with `copy_table` a copy of the table in hidden's type. Backward:
both gradients, that of the table fp32 [V, D]; while it runs the permutation, 16 bytes a token, 12 more and what a sort
takes to find the tokens of each target, and eight bytes a program. Never [M, ns] or the indices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srsplan.kernels.block_softmax.call import BlockCall
from srsplan.kernels.debug import check_targets
from srsplan.kernels.sampled_softmax.operators import Numbers


@torch.library.custom_op("srsplan::block_softmax", mutates_args=())
def block_softmax(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    numbers: list[int],
    seed: Tensor | None,
    step: Tensor | None,
    log_q: bool,
    copy_table: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses and shifts, fp32 [M], and directions of hidden's gradient, [M, D]; [0, D] if it is not wanted.

    `numbers` is a sampled_softmax.operators.Numbers; `seed` and `step`, int64 [], stand for its own where they are
    given.
    """
    call = BlockCall(hidden, item_table, Numbers(*numbers), (seed, step))
    outputs = call.outputs(with_grad)
    if len(hidden):
        check_targets(targets, len(item_table), call.numbers.ignore_index)
        table = item_table.to(hidden.dtype) if copy_table else item_table
        with torch.cuda.device_of(hidden):
            call.forward(hidden, table, targets, outputs, log_q)
    return outputs


@block_softmax.register_fake
def block_softmax_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, numbers: list[int], seed: Tensor | None, step: Tensor | None,
    log_q: bool, copy_table: bool, with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    call = BlockCall(hidden, item_table, Numbers(*numbers))
    outputs = call.outputs(with_grad)
    table = item_table.new_empty(item_table.shape, dtype=hidden.dtype) if copy_table else item_table
    order = call.empty_order()
    del table, order
    return outputs


@torch.library.custom_op("srsplan::block_softmax_backward", mutates_args=())
def block_softmax_backward(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    numbers: list[int],
    seed: Tensor | None,
    step: Tensor | None,
    losses: Tensor,
    shifts: Tensor,
    directions: Tensor,
    weights: Tensor,
    table_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of sum(weights x losses): of hidden [M, D] in its type, of the table [V, D] in fp32.

    That of the table is [0, D] if it is not wanted, and hidden's is as `directions`.
    """
    call = BlockCall(hidden, item_table, Numbers(*numbers), (seed, step))
    grad_table = call.empty_grad_table(table_grad)
    if not len(hidden):
        return torch.empty_like(directions), grad_table.zero_()
    with torch.cuda.device_of(hidden):
        if table_grad:
            call.fill_grad_table(grad_table, item_table, (targets, losses, shifts, weights))
        grad_hidden = torch.empty_like(directions)
        if len(directions):
            call.fill_grad_hidden(grad_hidden, directions, losses, weights)
    return grad_hidden, grad_table


@block_softmax_backward.register_fake
def block_softmax_backward_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, numbers: list[int], seed: Tensor | None, step: Tensor | None,
    losses: Tensor, shifts: Tensor, directions: Tensor, weights: Tensor, table_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    call = BlockCall(hidden, item_table, Numbers(*numbers))
    grad_table = call.empty_grad_table(table_grad)
    if table_grad:
        state, order, places = call.empty_state(), call.empty_order(), call.empty_places(targets)
        found = call.tokens_by_place(places)
        del state, order, places, found
    return torch.empty_like(directions), grad_table


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, item_table, targets, ctx.numbers, seed, step, *_ = inputs
    ctx.save_for_backward(hidden, item_table, targets, seed, step, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as they are


def _backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Any, ...]:
    hidden, item_table, targets, seed, step, *outputs = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    grads = block_softmax_backward(
        hidden, item_table, targets, ctx.numbers, seed, step, *outputs, grad_losses.contiguous(), wanted[1]
    )
    both = grads[0] if wanted[0] else None, grads[1].to(item_table.dtype) if wanted[1] else None
    return *both, *[None] * 7


block_softmax.register_autograd(_backward, setup_context=_save)
