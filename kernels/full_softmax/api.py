"""Cross-entropy over the whole catalog without [M, V] in memory: one function on plain PyTorch, one on Triton.

Shape letters: M tokens, V items, D hidden size, T tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.chunked_autograd import (
    BackwardScale,
    LossesAndGradients,
    Tokens,
    Wanted,
    chunked_loss,
    product_dtype,
)
from srsplan.kernels.full_softmax.chunked import softmax_chunks
from srsplan.kernels.launches.limits import check_inputs
from srsplan.kernels.reduction import IGNORE_INDEX, Reduction, reduce_losses

FORMAT_FILTER = {torch.float16: 2.0**-35, torch.bfloat16: 2.0**-40, torch.float32: 2.0**-40}
"""Shares below this are lost anyway: in fp16 they round to zero after the lift of 1024, in the others they are below
the rounding of a sum that has a share of 1 in it."""


def cce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    compute_dtype: torch.dtype | None = None,
    backward_scale: BackwardScale = None,
) -> Tensor:
    """Compute the cross-entropy over the whole catalog a chunk of tokens at a time; equal to `eager.ce` to rounding.

    Arguments and result are those of `eager.ce`. `compute_dtype` is that of the matrix products; None takes autocast's
    where it is on, else `hidden`'s. Gradients accumulate in fp32. ValueError for an unknown reduction.

    With `backward_scale`, what autograd's incoming gradient of the loss is going to be (a GradScaler's scale times the
    call's part of a batch), the table's gradient is added to `item_table.grad` by this call, before it returns. It then
    does not pass through autograd: no hook sees it, so this is not for DistributedDataParallel; gradients must have
    been zeroed before, and every loss be run backward. ValueError for a table that is no fp32 leaf, for reduction
    "none", and on a CPU, in backward, where another gradient comes in.

    Memory above the inputs: two [T, V] buffers in the compute type, one [V, D] gradient in fp32 (with `backward_scale`:
    `item_table.grad`), the gradient of `hidden`, and in 16 bit a [V, D] copy of the table and one [65536, D] block.
    Never [M, V].
    """
    dtype = product_dtype(hidden, compute_dtype)

    def run(tokens: Tokens, wanted: Wanted | None) -> LossesAndGradients:
        return softmax_chunks(tokens, item_table.detach(), wanted, dtype)

    on_cpu = hidden.device.type == "cpu"
    chunk = chunking.softmax_chunk_tokens(max(1, targets.shape[0]), item_table.shape[0], on_cpu)
    tokens = Tokens(hidden.detach(), targets, ignore_index, chunk)
    return chunked_loss(hidden, item_table, tokens, run, reduction, backward_scale)


def cce_triton(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    filter_eps: float | None = None,
) -> Tensor:
    """Compute the cross-entropy over the whole catalog by Triton kernels; arguments and result are those of `cce`.

    Runs are bitwise repeatable. The gradient of the table skips spans of items whose largest share of the softmax is
    below `filter_eps`: None takes what the format cannot represent, 0 skips nothing, PUBLISHED_FILTER (3e-5, of the
    package) is what a peer ships, up to 1e-4 is published to keep quality. Products run in `hidden`'s type (fp16, bf16,
    fp32 without tf32), sums in fp32; the table may be fp32 beside 16-bit hidden states.

    Memory above the inputs: 8 bytes a token, one byte per 128 tokens (fewer above D 256 and in fp32) x 256 items, and
    hidden's gradient but for its length, [M, D] in hidden's type, from forward on; with fewer tokens than keep a card
    busy, at most 64 MiB of partial sums during forward; in backward the gradients of both inputs and 16 bytes a token;
    a 16-bit copy of an fp32 table while a kernel runs. What is frozen takes none of it. Hidden states of ignored tokens
    must be finite.
    ValueError for hidden sizes that are no multiple of 16 or above 1024 (256 in fp32), and for types that do
    not go together.
    """
    from srsplan.kernels.full_softmax.operators import full_softmax  # Triton is not installed everywhere

    check_inputs(hidden, item_table, targets)
    if filter_eps is not None and not 0 <= filter_eps < 1:
        raise ValueError(f"filter_eps {filter_eps} is outside [0, 1)")
    eps = FORMAT_FILTER[hidden.dtype] if filter_eps is None else filter_eps
    threshold = math.log(eps) if eps > 0 else -1e29
    grad = torch.is_grad_enabled()
    losses, *_ = full_softmax(
        hidden.contiguous(), item_table.contiguous(), targets.contiguous(), ignore_index, threshold,
        grad and hidden.requires_grad, grad and item_table.requires_grad,
    )  # fmt: skip
    return reduce_losses(losses, targets != ignore_index, reduction)
