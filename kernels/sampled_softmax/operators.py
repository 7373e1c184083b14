"""The Triton sampled softmax as custom operators: autograd, fake implementations, launch.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set.

Memory contract. Forward: losses and shifts, fp32 [M] each. Backward: the gradient of hidden in its type, one fp32
[V, D], and two fp32 [M] of weights; `deterministic` adds an int64 [V, D] (two more tables) while the sum is taken. What
wants no gradient takes nothing. With `copy_table` a copy of the table in hidden's type lives during either. Never
[M, ns], never the indices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from srsplan.kernels.debug import check_items, check_targets
from srsplan.kernels.launches.autotune import Form
from srsplan.kernels.launches.call import SMALLEST_BLOCK, launch_options, row_options, tuned_launch
from srsplan.kernels.launches.device import capability_of
from srsplan.kernels.launches.table import Launch, launch_for, sampled_table
from srsplan.kernels.sampled_softmax import kernel as kernels
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.kind import SamplerKind
from srsplan.kernels.samplers.mixed import Mixed
from srsplan.kernels.samplers.sampling import Sampling

TUNED_BLOCK_N = (16, 32, 64)
"""Items of a tile that autotuning tries."""
CONVERTED = 2048
"""Numbers of a program that ends a sum in fixed point."""

TRITON_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}

SOURCE_TENSORS = {
    SamplerKind.UNIFORM: (),
    SamplerKind.WEIGHTED: ("prob", "alias", "log_prob"),
    SamplerKind.GIVEN: ("indices",),
    SamplerKind.IN_BATCH: ("indices", "log_prob"),
    SamplerKind.MIXED: ("indices", "log_prob"),
}
"""The tensors that a sampler reads, in the order in which the operators take them."""


class Numbers(NamedTuple):
    """The integers of a call, in the order in which the operators take them.

    `stride` and `group` are those of the batch's windows (kernels.chunking), `first_set` and `sets` what the call runs.
    `seed` and `step` are 0 where they are tensors (`moment_of`). `from_batch` is that of a mixture.
    """

    negatives: int
    seed: int
    step: int
    ignore_index: int
    stride: int
    group: int
    first_set: int
    sets: int
    first_token: int
    from_batch: int = 0

    @classmethod
    def of(
        cls, sets: CallSets, sampling: Sampling, ignore_index: int, distribution: Distribution | InBatch | None = None
    ) -> Numbers:
        """Return the integers of a call over some sets."""
        seed, step = (0 if isinstance(each, Tensor) else each for each in (sampling.seed, sampling.step))
        return cls(
            sets.negatives, seed, step, ignore_index, sets.windows.stride,
            sets.windows.tokens_per_set, sets.numbers.start, len(sets.numbers), sets.first_token,
            distribution.from_batch if isinstance(distribution, Mixed) else 0,
        )  # fmt: skip


def moment_of(sampling: Sampling) -> tuple[Tensor | None, Tensor | None]:
    """Return seed and step where they are tensors, which the kernels load, in the order of the operators."""
    seed, step = sampling.seed, sampling.step
    return seed if isinstance(seed, Tensor) else None, step if isinstance(step, Tensor) else None


def source_of(
    sampler: SamplerKind, negatives: int | Tensor, distribution: Distribution | InBatch | None
) -> list[Tensor]:
    """Return the tensors that a sampler reads, as `SOURCE_TENSORS` names them."""
    tensors: dict[str, Tensor] = {}
    if isinstance(negatives, Tensor):
        tensors = {"indices": negatives.contiguous()}
    elif isinstance(distribution, InBatch):
        tensors = {"indices": distribution.slots.contiguous(), "log_prob": distribution.log_prob}
    elif distribution is not None:
        tensors = {"prob": distribution.prob, "alias": distribution.alias, "log_prob": distribution.log_prob}
    return [tensors[name] for name in SOURCE_TENSORS[sampler]]


@torch.library.custom_op("srsplan::sampled_softmax", mutates_args=())
def sampled_softmax(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    sampler: int,
    source: list[Tensor],
    numbers: list[int],
    seed: Tensor | None,
    step: Tensor | None,
    log_q: bool,
    copy_table: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Return losses and shifts, fp32 [M].

    `sampler` is a SamplerKind, `source` the tensors that SOURCE_TENSORS names for it, and after them the tokens'
    thresholds fp32 [M] where there are any (kernels.sampled_softmax.thresholds), `numbers` a Numbers; `seed` and
    `step`, int64 [], stand for its own where they are given.
    """
    # every token is of one of the call's sets: nothing is left as it was
    losses, shifts = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
    if not len(hidden):
        return losses, shifts
    check_targets(targets, len(item_table), numbers[Numbers._fields.index("ignore_index")])
    if sampler in (SamplerKind.GIVEN, SamplerKind.IN_BATCH, SamplerKind.MIXED):
        check_items(source[0], len(item_table))
    call = _Call(hidden, item_table, targets, SamplerKind(sampler), source, Numbers(*numbers), (seed, step))
    table = item_table.to(hidden.dtype) if copy_table else item_table

    def run(launch: Launch) -> None:
        kernels.sampled_forward[call.grid(launch)](
            hidden, table, targets, losses, shifts, call.log_prob, call.thresholds, *call.arguments,
            HARDEST=call.hardest, **call.options(launch, log_q),
        )  # fmt: skip

    with torch.cuda.device_of(hidden):
        run(call.launch("sampled_forward", run, table, log_q)[0])
    return losses, shifts


@sampled_softmax.register_fake
def sampled_softmax_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, sampler: int, source: list[Tensor], numbers: list[int],
    seed: Tensor | None, step: Tensor | None, log_q: bool, copy_table: bool, deterministic: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    losses, shifts = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))
    table = _copied(item_table, hidden) if copy_table else item_table
    del table
    return losses, shifts


@torch.library.custom_op("srsplan::sampled_softmax_backward", mutates_args=())
def sampled_softmax_backward(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    sampler: int,
    source: list[Tensor],
    numbers: list[int],
    seed: Tensor | None,
    step: Tensor | None,
    log_q: bool,
    copy_table: bool,
    deterministic: bool,
    losses: Tensor,
    shifts: Tensor,
    weights: Tensor,
    hidden_grad: bool,
    table_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of sum(weights x losses): of hidden [M, D] in its type, of the table [V, D] in fp32.

    One that is not asked for is [0, D].
    """
    grad_hidden, grad_table = _gradients(hidden, item_table, deterministic, (hidden_grad, table_grad))
    grad_table.zero_()
    if not len(hidden):
        return grad_hidden, grad_table.float()
    call = _Call(hidden, item_table, targets, SamplerKind(sampler), source, Numbers(*numbers), (seed, step))
    table = item_table.to(hidden.dtype) if copy_table else item_table
    scale, broken = weights.abs().max(), weights.new_zeros(1 if deterministic else 0)

    def run(launch: Launch) -> None:
        kernels.sampled_backward[call.grid(launch)](
            hidden, table, targets, losses, shifts, call.log_prob, call.thresholds, weights, scale, grad_hidden,
            grad_table, broken, *call.arguments, FIXED=kernels.FIXED_POINT if deterministic else 0.0,
            HIDDEN_GRAD=hidden_grad, TABLE_GRAD=table_grad, HARDEST=call.hardest, **call.options(launch, log_q),
        )  # fmt: skip

    with torch.cuda.device_of(hidden):
        launch, tried = call.launch("sampled_backward", run, table, log_q, deterministic)
        if tried:
            grad_table.zero_()
            broken.zero_()
        run(launch)
        if deterministic:
            grad_table = _from_fixed_point(grad_table, broken, scale)
    return grad_hidden, grad_table


def _from_fixed_point(sums: Tensor, broken: Tensor, scale: Tensor) -> Tensor:
    """Return what a sum in fixed point, int64 [*, D], stands for, in fp32."""
    out = torch.empty_like(sums, dtype=torch.float32)
    if len(sums):
        kernels.from_fixed_point[(triton.cdiv(sums.numel(), CONVERTED),)](
            sums, broken, scale, out, sums.numel(), FIXED=kernels.FIXED_POINT, BLOCK_N=CONVERTED
        )
    return out


@sampled_softmax_backward.register_fake
def sampled_softmax_backward_fake(
    hidden: Tensor, item_table: Tensor, targets: Tensor, sampler: int, source: list[Tensor], numbers: list[int],
    seed: Tensor | None, step: Tensor | None, log_q: bool, copy_table: bool, deterministic: bool, losses: Tensor,
    shifts: Tensor, weights: Tensor, hidden_grad: bool, table_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate what the operator does, in its order, and keep it as long."""
    grad_hidden, grad_table = _gradients(hidden, item_table, deterministic, (hidden_grad, table_grad))
    table = _copied(item_table, hidden) if copy_table else item_table
    if deterministic:
        grad_table = grad_table.to(torch.float32)
    del table
    return grad_hidden, grad_table


def _gradients(
    hidden: Tensor, item_table: Tensor, deterministic: bool, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Make both gradients, [0, D] where they are not wanted; not filled. `deterministic` adds up in int64."""
    dim = hidden.shape[1]
    grad_hidden = hidden.new_empty((hidden.shape[0] if wanted[0] else 0, dim))
    kind = torch.int64 if deterministic else torch.float32
    return grad_hidden, item_table.new_empty((item_table.shape[0] if wanted[1] else 0, dim), dtype=kind)


def _copied(item_table: Tensor, hidden: Tensor) -> Tensor:
    return item_table.new_empty(item_table.shape, dtype=hidden.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, item_table, targets, ctx.sampler, source, ctx.numbers, seed, step, *ctx.switches = inputs
    ctx.save_for_backward(hidden, item_table, targets, seed, step, *source, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros as large as they are


def _backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Any, ...]:
    hidden, item_table, targets, seed, step, *source, losses, shifts = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    grads = sampled_softmax_backward(
        hidden, item_table, targets, ctx.sampler, source, ctx.numbers, seed, step, *ctx.switches, losses, shifts,
        grad_losses.contiguous(), *wanted,
    )  # fmt: skip
    both = grads[0] if wanted[0] else None, grads[1].to(item_table.dtype) if wanted[1] else None
    return *both, None, None, [None] * len(source), *[None] * 6


sampled_softmax.register_autograd(_backward, setup_context=_save)


class _Call:
    """The arguments of both kernels: where negatives come from, and how many programs run."""

    def __init__(
        self, hidden: Tensor, item_table: Tensor, targets: Tensor, sampler: SamplerKind, source: list[Tensor],
        numbers: Numbers, moment: tuple[Tensor | None, Tensor | None],
    ) -> None:  # fmt: skip
        self.hidden, self.sets, self.group, self.sampler = hidden, numbers.sets, numbers.group, sampler
        names = SOURCE_TENSORS[sampler]
        self.hardest = len(source) > len(names)
        tensors = dict(zip((*names, *["thresholds"] * self.hardest), source, strict=True))
        self.thresholds = tensors.get("thresholds", hidden)
        # a sampler does not read what it does not need: any pointer will do there
        prob, alias, self.log_prob = (tensors.get(name, hidden) for name in ("prob", "alias", "log_prob"))
        indices = tensors.get("indices", targets)
        drawn_from = len(indices) if sampler == SamplerKind.IN_BATCH else item_table.shape[0]
        seed, step = (None if each is None else each.to(hidden.device, non_blocking=True) for each in moment)
        self._loaded = {"LOAD_SEED": seed is not None, "LOAD_STEP": step is not None}
        self.arguments = (
            numbers.seed if seed is None else seed, numbers.step if step is None else step, drawn_from,
            numbers.negatives, prob, alias, indices, len(indices), numbers.from_batch, len(hidden), numbers.stride,
            numbers.group, numbers.first_set, numbers.first_token, numbers.ignore_index,
        )  # fmt: skip

    def launch(
        self, kernel: str, run: Callable[[Launch], object], table: Tensor, log_q: bool, deterministic: bool = False
    ) -> tuple[Launch, bool]:
        """Return the table's launch, or what autotuning found; and whether `run` was called to find it."""
        launches = sampled_table(
            kernel, capability_of(self.hidden.device), self.group, fp32=self.hidden.dtype == torch.float32,
            wide=table.dtype != self.hidden.dtype, looked_up=self.sampler != SamplerKind.UNIFORM,
            deterministic=deterministic,
        )  # fmt: skip
        form = Form(
            table=str(table.dtype), set_tokens=triton.next_power_of_2(self.group), log_q=log_q,
            sampler=self.sampler.name + " HARDEST" * self.hardest, deterministic=deterministic,
        )  # fmt: skip
        default = launch_for(launches, self.hidden.shape[1])
        return tuned_launch(kernel, self.hidden, default, run, form, TUNED_BLOCK_N)

    def grid(self, launch: Launch) -> tuple[int]:
        """Return the launch's grid, programs of a set beside each other: its second dimension ends at 65,535."""
        return (self.sets * triton.cdiv(self.group, self._block_m(launch)),)

    def options(self, launch: Launch, log_q: bool) -> dict[str, Any]:
        """Return the compile-time arguments of both kernels."""
        return {
            **row_options(self.hidden.shape[1]),
            **launch_options(launch),
            "BLOCK_M": self._block_m(launch),
            "SAMPLER": int(self.sampler),
            "LOG_Q": log_q,
            **self._loaded,
            "COMPUTE": TRITON_TYPES[self.hidden.dtype],
        }

    def _block_m(self, launch: Launch) -> int:
        """Return the tokens of a program: a matrix product wants 16 rows, so smaller sets leave some empty."""
        tokens: int = triton.next_power_of_2(self.group)
        return max(SMALLEST_BLOCK, min(launch.block_m, tokens))
