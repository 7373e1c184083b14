"""`cce_neg` on Triton: the same function and signature as the chunked form, with nothing of size tokens x negatives.

Shape letters: M tokens, V items, D hidden size, ns negatives of a set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srsplan.kernels.chunking import set_count
from srsplan.kernels.eager import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.sampled_softmax.operators import TRITON_TYPES, sampled_softmax
from srsplan.kernels.samplers.alias import Distribution, InBatch
from srsplan.kernels.samplers.sampling import Sampling, given_or_drawn

LARGEST_DIM, LARGEST_FP32_DIM = 1024, 256
"""In fp32 a row of more would not fit the registers and shared memory of a program."""


def cce_neg_triton(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    distribution: Distribution | InBatch | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    deterministic: bool = False,
    copy_table: bool = True,
) -> Tensor:
    """Cross-entropy of the target against drawn items; arguments and result are those of `chunked.cce_neg`.

    `distribution` draws items by weight, or from the batch's own targets, instead of uniformly (kernels.alias). Matrix
    products run in `hidden`'s type (fp16, bf16, fp32 without tf32), sums in fp32; the table may be fp32 beside 16-bit
    hidden states. `deterministic` makes the table's gradient, and so the run, bitwise repeatable at the price of an
    int64 [V, D] in backward.

    Memory above the inputs: forward 8 bytes a token; backward the gradients of both inputs and 8 bytes a token; while a
    kernel runs, where each of the table's rows is read more than once on average, a copy of the table in hidden's type,
    unless `copy_table` is False: then every row is read in fp32, twice the bytes.
    ValueError for hidden sizes that are no multiple of 16 or above 1024 (256 in fp32), and for types that do
    not go together.
    """
    check_inputs(hidden, item_table, targets)
    given_or_drawn(negatives, distribution)
    tokens, catalog = len(hidden), len(item_table)
    sets, source, count = set_count(tokens, sampling.tokens_per_set), _source(distribution), negatives
    if isinstance(negatives, Tensor):
        sets, count, source = negatives.shape[0], negatives.shape[1], [negatives.contiguous()]
    numbers = [int(count), max(1, sets), sampling.seed, sampling.step, ignore_index]
    pays = item_table.dtype != hidden.dtype and sets * int(count) > catalog
    losses, _ = sampled_softmax(
        hidden.contiguous(), item_table.contiguous(), targets.contiguous(), source, numbers, sampling.log_q,
        copy_table and pays, deterministic,
    )  # fmt: skip
    return reduce_losses(losses, targets != ignore_index, reduction)


def _source(distribution: Distribution | InBatch | None) -> list[Tensor]:
    if isinstance(distribution, InBatch):
        return [distribution.slots.contiguous(), distribution.log_prob]
    return [] if distribution is None else [distribution.prob, distribution.alias, distribution.log_prob]


def check_inputs(hidden: Tensor, item_table: Tensor, targets: Tensor) -> None:
    """ValueError for what the Triton kernels do not take."""
    dim = hidden.shape[1]
    if dim % 16 or dim > LARGEST_DIM or item_table.shape[1] != dim:
        raise ValueError(
            f"hidden [{len(hidden)}, {dim}] and item_table {list(item_table.shape)}: the kernels want one hidden size, "
            f"a multiple of 16 up to {LARGEST_DIM}; the chunked form takes any"
        )
    if hidden.dtype not in TRITON_TYPES or item_table.dtype not in (hidden.dtype, torch.float32):
        raise ValueError(
            f"hidden {hidden.dtype} and item_table {item_table.dtype}: want fp16, bf16 or fp32, or an fp32 table"
        )
    if hidden.dtype == torch.float32 and dim > LARGEST_FP32_DIM:
        raise ValueError(
            f"hidden fp32 [{len(hidden)}, {dim}]: the kernels take up to {LARGEST_FP32_DIM} in fp32 and {LARGEST_DIM} "
            "in 16 bit; the chunked form takes any"
        )
    if targets.dtype != torch.int64 or targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {targets.dtype} {list(targets.shape)}: want int64 [{len(hidden)}]")
