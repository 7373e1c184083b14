"""Cross-entropy of the target against drawn items without [M, ns] in memory: on plain PyTorch and on Triton.

Shape letters: M tokens, V items, D hidden size, g tokens that share a set, ns negatives of a set, S sets of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.chunked_autograd import LossesAndGradients, Tokens, chunked_loss, product_dtype
from srsplan.kernels.launches.limits import check_inputs
from srsplan.kernels.reduction import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.sampled_softmax.chunked import Draw, sampled_chunks
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.draw import kind_of
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.sampling import Sampling


def cce_neg(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor,
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    distribution: Distribution | InBatch | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the cross-entropy of the target against drawn items, without [M, ns, D] or [M, ns] in memory.

    Arguments and result are those of `eager.ce_neg`, and so are the numbers for equal negatives. An int draws
    `negatives` uniform items per set of `sampling.tokens_per_set` tokens; a tensor gives them, int64 [sets, ns], and
    then its rows say how many sets there are (M rows: a set for every token). `distribution` draws by weight, or from
    the batch's own targets (kernels.samplers). ValueError where both are given, and for an unknown reduction.

    Memory above the inputs: per chunk the gathered rows [S, ns, D] (fp32, and a copy in 16 bit), [S, g, ns] logits and
    probabilities; one [V, D] gradient in fp32 and the gradient of `hidden`. No copy of the table.
    """
    kind_of(negatives, distribution)
    dtype = product_dtype(hidden, compute_dtype)
    count = targets.shape[0]
    if isinstance(negatives, Tensor):
        sets, per_set = negatives.shape
        group = -(-count // max(1, sets))
    else:
        group, per_set = sampling.tokens_per_set, negatives

    def run(tokens: Tokens, weights: Tensor | None) -> LossesAndGradients:
        draw = Draw(negatives, group, sampling, dtype, distribution)
        return sampled_chunks(tokens, item_table.detach(), weights, draw)

    chunk = chunking.sampled_chunk_sets(max(1, count), per_set, item_table.shape[1], max(1, group))
    return chunked_loss(hidden, item_table, Tokens(hidden.detach(), targets, ignore_index, chunk), run, reduction)


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
    """Compute the cross-entropy against drawn items by Triton kernels; arguments and result are those of `cce_neg`.

    `distribution` draws items by weight, or from the batch's own targets, instead of uniformly (kernels.samplers).
    Matrix products run in `hidden`'s type (fp16, bf16, fp32 without tf32), sums in fp32; the table may be fp32 beside
    16-bit hidden states. `deterministic` makes the table's gradient, and so the run, bitwise repeatable at the price of
    an int64 [V, D] in backward.

    Memory above the inputs: forward 8 bytes a token; backward the gradients of both inputs and 8 bytes a token; while a
    kernel runs, where each of the table's rows is read more than once on average, a copy of the table in hidden's type,
    unless `copy_table` is False: then every row is read in fp32, twice the bytes.
    ValueError for hidden sizes that are no multiple of 16 or above 1024 (256 in fp32), and for types that do
    not go together.
    """
    from srsplan.kernels.sampled_softmax.operators import Numbers, sampled_softmax, source_of  # needs Triton

    check_inputs(hidden, item_table, targets)
    sampler = kind_of(negatives, distribution)
    if isinstance(negatives, Tensor):
        sets, count = negatives.shape
    else:
        sets, count = chunking.set_count(len(hidden), sampling.tokens_per_set), negatives
    numbers = Numbers(count, max(1, sets), sampling.seed, sampling.step, ignore_index)
    pays = item_table.dtype != hidden.dtype and chunking.table_copy_pays(sets, count, len(item_table))
    losses, _ = sampled_softmax(
        hidden.contiguous(), item_table.contiguous(), targets.contiguous(), int(sampler),
        source_of(sampler, negatives, distribution), list(numbers), sampling.log_q, copy_table and pays, deterministic,
    )  # fmt: skip
    return reduce_losses(losses, targets != ignore_index, reduction)
