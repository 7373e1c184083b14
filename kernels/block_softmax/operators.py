"""The Triton sampled softmax with negatives in blocks as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size.

Memory contract. Forward: losses and shifts, fp32 [M] each; the gradient of hidden but for its weights, [M, D] in
hidden's type; while it runs the step's permutation, int32 [V], and with `copy_table` a copy of the table in hidden's
type. Backward: both gradients, that of the table fp32 [V, D]; while it runs the permutation, 16 bytes a token, 16 more
and what a sort takes to find the tokens of each target, and eight bytes a program. Never [M, ns] or the indices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from srsplan.kernels.block_softmax import kernel as kernels
from srsplan.kernels.block_softmax.grid import STATE_ROWS, BlockGrid, Halves, blocks_of, rounds_of
from srsplan.kernels.launches.call import SMALLEST_BLOCK, launch_options, row_options
from srsplan.kernels.launches.table import Launch, blocks_table, launch_for
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.samplers.sampling import Sampling

ROWS = 16
"""Tokens of a program that works on rows one by one."""
PLACES = 1024
"""Places, or tokens, of a program that works on numbers."""


class Numbers(NamedTuple):
    """The integers of a call, in the order in which the operators take them: see `operators.Numbers`."""

    negatives: int
    seed: int
    step: int
    ignore_index: int
    stride: int
    group: int
    first_set: int
    sets: int
    first_token: int

    @classmethod
    def of(cls, sets: CallSets, sampling: Sampling, ignore_index: int) -> Numbers:
        """Return the integers of a call over some sets."""
        return cls(
            sets.negatives, sampling.seed, sampling.step, ignore_index, sets.windows.stride,
            sets.windows.tokens_per_set, sets.numbers.start, len(sets.numbers), sets.first_token,
        )  # fmt: skip


@torch.library.custom_op("srsplan::block_softmax", mutates_args=())
def block_softmax(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    numbers: list[int],
    log_q: bool,
    copy_table: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses and shifts, fp32 [M], and hidden's gradient but for its weights, [M, D], [0, D] if not wanted.

    `numbers` is a Numbers.
    """
    call = BlockCall(hidden, item_table, Numbers(*numbers))
    losses, shifts, row_grads = call.outputs(with_grad)
    if not len(hidden):
        return losses, shifts, row_grads
    table = item_table.to(hidden.dtype) if copy_table else item_table
    with torch.cuda.device_of(hidden):
        order = call.order()
        launch = call.forward_launch()
        parts = triton.cdiv(call.numbers.group, launch.block_m)
        kernels.blocks_forward[(call.numbers.sets * parts,)](
            hidden, table, targets, order, losses, shifts, row_grads, *call.draw, *call.cut,
            call.numbers.ignore_index, parts, LOG_Q=log_q, GRAD=with_grad, BLOCK_M=launch.block_m,
            **call.options(launch),
        )  # fmt: skip
    return losses, shifts, row_grads


@block_softmax.register_fake
def block_softmax_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, numbers: list[int], log_q: bool, copy_table: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    call = BlockCall(hidden, item_table, Numbers(*numbers))
    losses, shifts, row_grads = call.outputs(with_grad)
    table = item_table.new_empty(item_table.shape, dtype=hidden.dtype) if copy_table else item_table
    order = call.empty_order()
    del table, order
    return losses, shifts, row_grads


@torch.library.custom_op("srsplan::block_softmax_backward", mutates_args=())
def block_softmax_backward(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    numbers: list[int],
    losses: Tensor,
    shifts: Tensor,
    row_grads: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of sum(weights x losses): of hidden [M, D] in its type, of the table [V, D] in fp32."""
    call = BlockCall(hidden, item_table, Numbers(*numbers))
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.float32)
    if not len(hidden):
        return torch.empty_like(row_grads), grad_table.zero_()
    with torch.cuda.device_of(hidden):
        call.fill_grad_table(grad_table, hidden, item_table, (targets, losses, shifts, weights))
        grad_hidden = torch.empty_like(row_grads)
        if len(row_grads):
            kernels.blocks_hidden[(triton.cdiv(len(hidden), ROWS),)](
                row_grads, losses, weights, targets, grad_hidden, len(hidden), call.numbers.ignore_index,
                BLOCK_M=ROWS, **row_options(hidden.shape[1]),
            )  # fmt: skip
    return grad_hidden, grad_table


@block_softmax_backward.register_fake
def block_softmax_backward_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, numbers: list[int], losses: Tensor, shifts: Tensor,
    row_grads: Tensor, weights: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    call = BlockCall(hidden, item_table, Numbers(*numbers))
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.float32)
    state, order, places = call.empty_state(), call.empty_order(), targets.new_empty(targets.shape, dtype=torch.int32)
    found = call.tokens_by_place(places)
    del state, order, places, found
    return torch.empty_like(row_grads), grad_table


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, item_table, targets, ctx.numbers, *_ = inputs
    ctx.save_for_backward(hidden, item_table, targets, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_losses: Tensor, *_: Tensor) -> tuple[Any, ...]:
    hidden, item_table, targets, *outputs = ctx.saved_tensors
    grad_hidden, grad_table = block_softmax_backward(
        hidden, item_table, targets, ctx.numbers, *outputs, grad_losses.contiguous()
    )
    wanted = grad_hidden if ctx.needs_input_grad[0] else None
    return wanted, grad_table.to(item_table.dtype), None, None, None, None, None


block_softmax.register_autograd(_backward, setup_context=_save)


class BlockCall:
    """A call: where its negatives come from, and how it is cut into programs."""

    def __init__(self, hidden: Tensor, item_table: Tensor, numbers: Numbers) -> None:
        self.hidden, self.catalog, self.numbers = hidden, item_table.shape[0], numbers
        self.halves, self.rounds = Halves.of(self.catalog), rounds_of(numbers.negatives)
        blocks = blocks_of(self.catalog)
        self.fp32 = hidden.dtype == torch.float32
        self.grid = BlockGrid(tokens=len(hidden), catalog=self.catalog, dim=hidden.shape[1], fp32=self.fp32)
        self.backward = self._launch("blocks_backward")
        self.draw = (numbers.seed, numbers.step, self.catalog, numbers.negatives, blocks, blocks // self.rounds)
        self.cut = (len(hidden), numbers.stride, numbers.group, numbers.first_set, numbers.first_token)

    def outputs(self, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Make losses, shifts, row_grads; not filled."""
        tokens, dim = self.hidden.shape
        losses, shifts = (self.hidden.new_empty(tokens, dtype=torch.float32) for _ in range(2))
        return losses, shifts, self.hidden.new_empty((tokens if with_grad else 0, dim))

    def empty_order(self) -> Tensor:
        """Make room for the permutation, int32 [V]."""
        return self.hidden.new_empty(self.catalog, dtype=torch.int32)

    def order(self) -> Tensor:
        """Return the items in the order of the step's permutation, int32 [V]."""
        order, (seed, step, *_) = self.empty_order(), self.draw
        kernels.permute[(triton.cdiv(self.catalog, PLACES),)](
            order, seed, step, self.catalog, self.halves.upper, self.halves.bits, CLOCK=False, BLOCK=PLACES
        )
        return order

    def empty_state(self) -> Tensor:
        """Make room for the tokens' numbers, fp32 [4, padded]."""
        return self.hidden.new_empty((4, self.grid.padded), dtype=torch.float32)

    def places(self, targets: Tensor) -> Tensor:
        """Return where targets [*] are in the step's permutation, int32 [*]; V for one that is ignored."""
        places, (seed, step, *_) = targets.new_empty(len(targets), dtype=torch.int32), self.draw
        kernels.target_places[(triton.cdiv(len(targets), PLACES),)](
            targets, places, seed, step, self.catalog, self.halves.upper, self.halves.bits, len(targets),
            self.numbers.ignore_index, CLOCK=False, BLOCK=PLACES,
        )  # fmt: skip
        return places

    def tokens_by_place(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens in the order of their targets' places, int64 [M], and where each program's begin, int32."""
        ascending, tokens = torch.sort(places, stable=True)
        edges = torch.arange(self.grid.programs + 1, dtype=torch.int32, device=places.device)
        edges.mul_(self.grid.program_items)
        return tokens, torch.searchsorted(ascending, edges.clamp_(max=self.catalog), out_int32=True)

    def fill_grad_table(
        self, grad_table: Tensor, hidden: Tensor, item_table: Tensor, per_token: tuple[Tensor, ...]
    ) -> None:
        """Fill grad_table; the temporaries are gone before hidden's gradient is made."""
        targets, *_, weights = per_token
        scale, state, order = weights.abs().max(), self.empty_state(), self.order()
        kernels.token_state[(self.grid.padded // STATE_ROWS,)](
            *per_token, scale, state, len(hidden), self.grid.padded, self.numbers.ignore_index, BLOCK_M=STATE_ROWS
        )
        places = self.places(targets)
        tokens, starts = self.tokens_by_place(places)
        kernels.blocks_backward[(self.grid.programs,)](
            hidden, item_table, order, state, scale, tokens, starts, grad_table, *self.draw, self.rounds, len(hidden),
            self.grid.padded, *self.cut[1:4], self.numbers.sets, self.cut[4], **self.lanes(),
            **self.options(self.backward),
        )  # fmt: skip

    def forward_launch(self) -> Launch:
        """Return the forward launch: its tokens are those of a set, at least 16, at most what a program holds."""
        launch = self._launch("blocks_forward")
        tokens: int = triton.next_power_of_2(self.numbers.group)
        return replace(launch, block_m=max(SMALLEST_BLOCK, min(launch.block_m, tokens)))

    def _launch(self, kernel: str) -> Launch:
        table = blocks_table(kernel, self.fp32)
        return launch_for(table, self.hidden.shape[1])

    def lanes(self) -> dict[str, int]:
        """Return how a tile's lanes are dealt to sets: several small sets, one set, or a part of one."""
        tokens: int = triton.next_power_of_2(self.numbers.group)
        lanes = self.backward.block_m
        group = min(tokens, lanes)
        parts = triton.cdiv(self.numbers.group, group)
        return {"BLOCK_M": lanes, "SETS": lanes // group, "GROUP": group, "PARTS": parts}

    def options(self, launch: Launch) -> dict[str, Any]:
        """Return the compile-time arguments of both large kernels but their tokens."""
        return {**row_options(self.hidden.shape[1]), **launch_options(launch), "CLOCK": False}
