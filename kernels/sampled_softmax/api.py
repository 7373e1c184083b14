"""Cross-entropy of the target against drawn items without [M, ns] in memory: on plain PyTorch and on Triton.

Shape letters: M tokens, V items, D hidden size, g tokens that share a set, ns negatives of a set, S sets of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.block_softmax.grid import most_negatives
from srsplan.kernels.chunked_autograd import (
    BackwardScale,
    LossesAndGradients,
    Tokens,
    Wanted,
    chunked_loss,
    product_dtype,
)
from srsplan.kernels.launches.limits import check_inputs
from srsplan.kernels.reduction import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.sampled_softmax.call_sets import CallSets
from srsplan.kernels.sampled_softmax.chunked import Draw, sampled_chunks
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.blocks import draws_blocks
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
    backward_scale: BackwardScale = None,
) -> Tensor:
    """Compute the cross-entropy of the target against drawn items, without [M, ns, D] or [M, ns] in memory.

    Arguments and result are those of `eager.ce_neg`, and so are the numbers for equal negatives. An int draws
    `negatives` uniform items per set of `sampling.tokens_per_set` tokens; a tensor gives them, int64 [sets, ns], and
    then its rows say how many sets there are (M rows: a set for every token). `distribution` draws by weight, or from
    the batch's own targets (kernels.samplers). ValueError where both are given, and for an unknown reduction.

    Calls over consecutive parts of a batch (`sampling.first_token`, `sampling.batch_tokens`) draw what one call over
    the whole of it draws. `backward_scale` is that of `full_softmax.api.cce`. Negatives that are given
    make a batch of the call.

    Memory above the inputs: per chunk the gathered rows [S, ns, D] (fp32, and a copy in 16 bit), [S, g, ns] logits and
    probabilities; one [V, D] gradient in fp32 and the gradient of `hidden`. No copy of the table.
    """
    kind_of(negatives, distribution)
    if draws_blocks(negatives, sampling, distribution):
        negatives = min(negatives, most_negatives(len(item_table)))
    sets = CallSets.of(negatives, sampling, len(targets))
    draw = Draw(negatives, sampling, product_dtype(hidden, compute_dtype), distribution, sets)

    def run(tokens: Tokens, wanted: Wanted | None) -> LossesAndGradients:
        return sampled_chunks(tokens, item_table.detach(), wanted, draw)

    tokens = Tokens(hidden.detach(), targets, ignore_index, sets.chunk(item_table.shape[1]))
    return chunked_loss(hidden, item_table, tokens, run, reduction, backward_scale)


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

    Memory above the inputs: forward 8 bytes a token; backward the gradients of both inputs, unless they are frozen, and
    8 bytes a token; while a kernel runs, where each of the table's rows is read more than three times on average, a
    copy of the table in hidden's type, unless `copy_table` is False: then every row is read in fp32, twice the bytes.
    Sets of more than 32 tokens are handled 32 tokens at a time, by programs that gather the set's rows, and add to
    their gradients, each for itself: beyond 32 a larger set saves nothing of either.
    ValueError for hidden sizes that are no multiple of 16 or above 1024 (256 in fp32), and for types that do
    not go together.
    """
    from srsplan.kernels.block_softmax.operators import block_softmax  # needs Triton
    from srsplan.kernels.sampled_softmax import operators

    check_inputs(hidden, item_table, targets)
    sampler, blocks = kind_of(negatives, distribution), draws_blocks(negatives, sampling, distribution)
    if draws_blocks(negatives, sampling, distribution):
        negatives = min(negatives, most_negatives(len(item_table)))
    sets = CallSets.of(negatives, sampling, len(hidden))
    numbers, moment = operators.Numbers.of(sets, sampling, ignore_index, distribution), operators.moment_of(sampling)
    pays = chunking.table_copy_pays(len(hidden), sets.windows.tokens_per_set, sets.negatives, len(item_table))
    copied = copy_table and pays and item_table.dtype != hidden.dtype
    tensors = hidden.contiguous(), item_table.contiguous(), targets.contiguous()
    if blocks:
        with_grad = torch.is_grad_enabled() and hidden.requires_grad
        losses, *_ = block_softmax(*tensors, list(numbers), *moment, sampling.log_q, copied, with_grad)
    else:
        source = operators.source_of(sampler, negatives, distribution)
        if sampling.hardest is not None:
            from srsplan.kernels.sampled_softmax.thresholds import sampled_thresholds

            detached = [each.detach() for each in tensors]
            source.append(
                sampled_thresholds(*detached, int(sampler), source, list(numbers), *moment, copied, sampling.hardest)
            )
        losses, _ = operators.sampled_softmax(
            *tensors, int(sampler), source, list(numbers), *moment, sampling.corrected, copied, deterministic
        )
    return reduce_losses(losses, targets != ignore_index, reduction)
