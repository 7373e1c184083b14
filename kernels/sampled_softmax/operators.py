"""The Triton sampled softmax as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set.

Memory contract. Forward: losses and shifts, fp32 [M] each. Backward: the gradient of hidden in its type, one fp32
[V, D], and two fp32 [M] of weights; `deterministic` adds an int64 [V, D] (two more tables) while the sum is taken. With
`copy_table` a copy of the table in hidden's type lives during either. Never [M, ns], never the indices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from srsplan.kernels.launches.autotune import Key, launch_on
from srsplan.kernels.launches.table import SAMPLED_BACKWARD, SAMPLED_FORWARD, Launch, launch_for
from srsplan.kernels.sampled_softmax import kernel as kernels

TILES = (16, 32, 64)
"""Items of a tile that autotuning tries."""

TRITON_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@torch.library.custom_op("srsplan::sampled_softmax", mutates_args=())
def sampled_softmax(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    source: list[Tensor],
    numbers: list[int],
    log_q: bool,
    copy_table: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """losses and shifts, fp32 [M]; `source` and `numbers` as `Draw` packs them."""
    losses, shifts = (hidden.new_zeros(len(hidden), dtype=torch.float32) for _ in range(2))
    if not len(hidden):
        return losses, shifts
    call = _Call(hidden, item_table, targets, source, numbers)
    table = item_table.to(hidden.dtype) if copy_table else item_table

    def run(launch: Launch) -> None:
        kernels.sampled_forward[call.grid(launch)](
            hidden, table, targets, losses, shifts, call.log_prob, *call.arguments, **call.options(launch, log_q)
        )

    with torch.cuda.device_of(hidden):
        run(call.launch("sampled_forward", launch_for(SAMPLED_FORWARD, hidden.shape[1]), run)[0])
    return losses, shifts


@sampled_softmax.register_fake
def sampled_softmax_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, source: list[Tensor], numbers: list[int], log_q: bool,
    copy_table: bool, deterministic: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocates what the operator does, in its order, and keeps it as long."""
    losses, shifts = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))
    table = _copied(item_table, hidden) if copy_table else item_table
    del table
    return losses, shifts


@torch.library.custom_op("srsplan::sampled_softmax_backward", mutates_args=())
def sampled_softmax_backward(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    source: list[Tensor],
    numbers: list[int],
    log_q: bool,
    copy_table: bool,
    deterministic: bool,
    losses: Tensor,
    shifts: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(weights x losses): of hidden [M, D] in its type, of the table [V, D] in fp32."""
    grad_hidden = torch.zeros_like(hidden)
    kind = torch.int64 if deterministic else torch.float32
    grad_table = torch.zeros(item_table.shape, dtype=kind, device=item_table.device)
    if not len(hidden):
        return grad_hidden, grad_table.float()
    call = _Call(hidden, item_table, targets, source, numbers)
    table = item_table.to(hidden.dtype) if copy_table else item_table
    scale = weights.abs().max()

    def run(launch: Launch) -> None:
        kernels.sampled_backward[call.grid(launch)](
            hidden, table, targets, losses, shifts, call.log_prob, weights, scale, grad_hidden, grad_table,
            *call.arguments, FIXED=kernels.FIXED_POINT if deterministic else 0.0, **call.options(launch, log_q),
        )  # fmt: skip

    with torch.cuda.device_of(hidden):
        launch, tried = call.launch("sampled_backward", launch_for(SAMPLED_BACKWARD, hidden.shape[1]), run)
        if tried:
            grad_table.zero_()
        run(launch)
    if deterministic:
        grad_table = grad_table.float().mul_(scale / kernels.FIXED_POINT)
    return grad_hidden, grad_table


@sampled_softmax_backward.register_fake
def sampled_softmax_backward_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, source: list[Tensor], numbers: list[int], log_q: bool,
    copy_table: bool, deterministic: bool, losses: Tensor, shifts: Tensor, weights: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocates what the operator does, in its order, and keeps it as long."""
    grad_hidden = torch.empty_like(hidden)
    grad_table = item_table.new_empty(item_table.shape, dtype=torch.int64 if deterministic else torch.float32)
    table = _copied(item_table, hidden) if copy_table else item_table
    if deterministic:
        grad_table = grad_table.to(torch.float32)
    del table
    return grad_hidden, grad_table


def _copied(item_table: Tensor, hidden: Tensor) -> Tensor:
    return item_table.new_empty(item_table.shape, dtype=hidden.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, item_table, targets, source, numbers, *switches = inputs
    ctx.save_for_backward(hidden, item_table, targets, *source, *output)
    ctx.numbers, ctx.switches = numbers, switches
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Any, ...]:
    hidden, item_table, targets, *source, losses, shifts = ctx.saved_tensors
    grad_hidden, grad_table = sampled_softmax_backward(
        hidden, item_table, targets, source, ctx.numbers, *ctx.switches, losses, shifts, grad_losses.contiguous()
    )
    return grad_hidden, grad_table.to(item_table.dtype), None, [None] * len(source), None, None, None, None


sampled_softmax.register_autograd(_backward, setup_context=_save)


class _Call:
    """What both kernels are given: where negatives come from, and how many programs run."""

    def __init__(
        self, hidden: Tensor, item_table: Tensor, targets: Tensor, source: list[Tensor], numbers: list[int]
    ) -> None:
        negatives, sets, seed, step, ignore_index = numbers
        self.hidden, self.sets = hidden, sets
        names = (kernels.UNIFORM, kernels.EXPLICIT, kernels.IN_BATCH, kernels.WEIGHTED)
        self.sampler = names[len(source)]
        # a sampler does not read what it does not need: any pointer will do there
        prob, alias, self.log_prob = source if self.sampler == kernels.WEIGHTED else (hidden,) * 3
        if self.sampler == kernels.IN_BATCH:
            self.log_prob = source[1]
        indices = source[0] if self.sampler in (kernels.EXPLICIT, kernels.IN_BATCH) else targets
        self.group = -(-len(hidden) // sets)
        drawn_from = len(indices) if self.sampler == kernels.IN_BATCH else item_table.shape[0]
        counts = (drawn_from, negatives, prob, alias, indices, len(hidden), sets, ignore_index)
        self.arguments = (seed, step, *counts)

    def launch(self, kernel: str, default: Launch, run: Callable[[Launch], object]) -> tuple[Launch, bool]:
        """The table's launch, or what autotuning found; and whether `run` was called to find it."""
        key = Key(kernel=kernel, dim=self.hidden.shape[1], dtype=str(self.hidden.dtype))
        return launch_on(self.hidden.device, key, default, run, TILES)

    def grid(self, launch: Launch) -> tuple[int, int]:
        """Sets, and programs of a set."""
        return self.sets, triton.cdiv(self.group, self._tokens(launch))

    def options(self, launch: Launch, log_q: bool) -> dict[str, Any]:
        """Compile-time arguments."""
        dim = self.hidden.shape[1]
        return {
            "DIM": dim,
            "WIDTH": max(16, triton.next_power_of_2(dim)),
            "SET": self._tokens(launch),
            "TILE": launch.tile,
            "SAMPLER": self.sampler,
            "LOG_Q": log_q,
            "COMPUTE": TRITON_TYPES[self.hidden.dtype],
            "PRECISION": "ieee",
            "num_warps": launch.warps,
            "num_stages": launch.stages,
        }

    def _tokens(self, launch: Launch) -> int:
        """A matrix product wants 16 rows: smaller sets leave some empty."""
        tokens: int = triton.next_power_of_2(self.group)
        return max(16, min(launch.tokens, tokens))
