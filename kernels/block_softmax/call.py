"""A call of the sampled softmax with negatives in blocks: its numbers, its tensors, and the kernels it launches.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from srsplan.kernels.block_softmax import kernel as kernels
from srsplan.kernels.block_softmax.grid import STATE_ROWS, BlockGrid, Halves, blocks_of, rounds_of
from srsplan.kernels.full_softmax.kernel import scale_rows, softmax_state
from srsplan.kernels.launches.autotune import Form
from srsplan.kernels.launches.call import SMALLEST_BLOCK, launch_options, row_options, tuned_launch
from srsplan.kernels.launches.table import Launch, blocks_table, launch_for
from srsplan.kernels.sampled_softmax.operators import Numbers

ROWS = 16
"""Tokens of a program that works on rows one by one."""
TUNED_BLOCK_N = (32, 64)
"""Items of a tile that autotuning tries: whole blocks."""
PLACES = 1024
"""Places, or tokens, of a program that works on numbers."""


class BlockCall:
    """Where a call's negatives come from, how it is cut into programs, and what they do."""

    def __init__(
        self, hidden: Tensor, item_table: Tensor, numbers: Numbers, moment: tuple[Tensor | None, ...] = (None, None)
    ) -> None:
        """Take the call's tensors; `moment` is seed and step where the kernels load them."""
        self.hidden, self.catalog, self.numbers = hidden, item_table.shape[0], numbers
        self.grid = BlockGrid(
            tokens=len(hidden), catalog=self.catalog, dim=hidden.shape[1], fp32=hidden.dtype == torch.float32
        )
        halves = Halves.of(self.catalog)
        seed, step = (None if each is None else each.to(hidden.device, non_blocking=True) for each in moment)
        self._moment = (numbers.seed if seed is None else seed, numbers.step if step is None else step)
        self._loaded = {"LOAD_SEED": seed is not None, "LOAD_STEP": step is not None}
        self._halves = (self.catalog, halves.upper, halves.bits)

    def outputs(self, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Make losses, shifts, directions; not filled."""
        tokens, dim = self.hidden.shape
        losses, shifts = (self.hidden.new_empty(tokens, dtype=torch.float32) for _ in range(2))
        return losses, shifts, self.hidden.new_empty((tokens if with_grad else 0, dim))

    def empty_grad_table(self, wanted: bool) -> Tensor:
        """Make room for the gradient of the table, fp32 [V, D]; [0, D] if it is not wanted."""
        shape = (self.catalog if wanted else 0, self.hidden.shape[1])
        return self.hidden.new_empty(shape, dtype=torch.float32)

    def empty_order(self) -> Tensor:
        """Make room for the permutation, int32 [V]."""
        return self.hidden.new_empty(self.catalog, dtype=torch.int32)

    def empty_state(self) -> Tensor:
        """Make room for the tokens' numbers, fp32 [4, padded]."""
        return self.hidden.new_empty((4, self.grid.padded), dtype=torch.float32)

    def empty_places(self, targets: Tensor) -> Tensor:
        """Make room for the targets' places, int32 [*]."""
        return targets.new_empty(targets.shape, dtype=torch.int32)

    def order(self) -> Tensor:
        """Return the items in the order of the step's permutation, int32 [V]."""
        order = self.empty_order()
        kernels.permute[(triton.cdiv(self.catalog, PLACES),)](
            order, *self._moment, *self._halves, BLOCK=PLACES, **self._loaded
        )
        return order

    def places(self, targets: Tensor) -> Tensor:
        """Return where targets [*] are in the step's permutation, int32 [*]; V for one that is ignored."""
        places = self.empty_places(targets)
        kernels.target_places[(triton.cdiv(len(targets), PLACES),)](
            targets, places, *self._moment, *self._halves, len(targets), self.numbers.ignore_index,
            BLOCK=PLACES, **self._loaded,
        )  # fmt: skip
        return places

    def tokens_by_place(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens in the order of their targets' places, int64 [M], and where each program's begin, int32."""
        ascending, tokens = torch.sort(places, stable=True)
        edges = torch.arange(self.grid.programs + 1, dtype=torch.int32, device=places.device)
        edges.mul_(self.grid.program_items).clamp_(max=self.catalog)
        return tokens, torch.searchsorted(ascending, edges, out_int32=True)

    def forward(self, hidden: Tensor, table: Tensor, targets: Tensor, outputs: tuple[Tensor, ...], log_q: bool) -> None:
        """Fill losses, shifts and directions."""
        order, with_grad = self.order(), len(outputs[-1]) > 0
        launches = blocks_table("blocks_forward", self.grid.fp32, wide=table.dtype != hidden.dtype)
        default = launch_for(launches, self.grid.dim)
        default = replace(default, block_m=max(SMALLEST_BLOCK, min(default.block_m, self._set_tokens)))
        programs = self.numbers.sets * triton.cdiv(self.numbers.group, default.block_m)

        def run(launch: Launch) -> None:
            kernels.blocks_forward[(programs,)](
                hidden, table, targets, order, *outputs, *self._draw(), *self._part(), self.numbers.first_token,
                self.numbers.ignore_index, LOG_Q=log_q, GRAD=with_grad, BLOCK_M=launch.block_m,
                **self._options(launch),
            )  # fmt: skip

        form = Form(table=str(table.dtype), set_tokens=self._set_tokens, log_q=log_q, with_grad=with_grad)
        run(tuned_launch("blocks_forward", hidden, default, run, form, TUNED_BLOCK_N)[0])

    def fill_grad_table(self, grad_table: Tensor, item_table: Tensor, per_token: tuple[Tensor, ...]) -> None:
        """Fill grad_table; `per_token` are targets, losses, shifts and weights. What it takes is gone afterwards."""
        hidden, padded = self.hidden, self.grid.padded
        scale, state, order = per_token[-1].abs().max(), self.empty_state(), self.order()
        softmax_state[(padded // STATE_ROWS,)](
            *per_token, scale, state, len(hidden), padded, self.numbers.ignore_index, BLOCK_M=STATE_ROWS, FP32=True
        )
        places = self.places(per_token[0])
        tokens, starts = self.tokens_by_place(places)

        def run(launch: Launch) -> None:
            kernels.blocks_backward[(self.grid.programs,)](
                hidden, item_table, order, state, scale, tokens, starts, grad_table, *self._draw(),
                rounds_of(self.numbers.negatives), padded, *self._part(), self.numbers.sets, self.numbers.first_token,
                **self._lanes(launch), **self._options(launch),
            )  # fmt: skip

        default = launch_for(blocks_table("blocks_backward", self.grid.fp32), self.grid.dim)
        form = Form(table=str(item_table.dtype), set_tokens=self._set_tokens)
        run(tuned_launch("blocks_backward", hidden, default, run, form)[0])

    def fill_grad_hidden(self, grad_hidden: Tensor, directions: Tensor, losses: Tensor, weights: Tensor) -> None:
        """Fill the gradient of hidden, [M, D]."""
        scale_rows[(triton.cdiv(len(directions), ROWS),)](
            directions, losses, weights, grad_hidden, len(directions), BLOCK_M=ROWS, **row_options(directions.shape[1])
        )

    def _draw(self) -> tuple[Any, ...]:
        """Return the kernels' arguments from `seed` to `width`."""
        blocks = blocks_of(self.catalog)
        width = blocks // rounds_of(self.numbers.negatives)
        return *self._moment, self.catalog, self.numbers.negatives, blocks, width

    def _part(self) -> tuple[int, ...]:
        """Return the kernels' arguments from `count` to `first_set`."""
        return len(self.hidden), self.numbers.stride, self.numbers.group, self.numbers.first_set

    def _lanes(self, launch: Launch) -> dict[str, int]:
        """Return how a tile's lanes are dealt to sets: several small sets, one set, or a part of one."""
        group = min(self._set_tokens, launch.block_m)
        parts = triton.cdiv(self.numbers.group, group)
        return {"BLOCK_M": launch.block_m, "SETS": launch.block_m // group, "GROUP": group, "PARTS": parts}

    @property
    def _set_tokens(self) -> int:
        """The tokens of a set, rounded up to a power of two."""
        return int(triton.next_power_of_2(self.numbers.group))

    def _options(self, launch: Launch) -> dict[str, Any]:
        """Return the compile-time arguments of both large kernels but their tokens."""
        return {**row_options(self.grid.dim), **launch_options(launch), **self._loaded}
