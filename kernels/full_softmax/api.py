"""`cce` on Triton: the same function and signature as the chunked form, without a row of logits in memory.

Shape letters: M tokens, V items, D hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srsplan.kernels.eager import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.full_softmax.operators import full_softmax
from srsplan.kernels.sampled_softmax.api import check_inputs

FORMAT_FILTER = {torch.float16: 2.0**-35, torch.bfloat16: 2.0**-40, torch.float32: 2.0**-40}
"""Shares below this are lost anyway: in fp16 they round to zero after the lift of 1024, in the others they are below
the rounding of a sum that has a share of 1 in it."""


def cce_triton(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    filter_eps: float | None = None,
) -> Tensor:
    """Cross-entropy over the whole catalog; arguments and result are those of `chunked.cce`. Bitwise repeatable.

    The gradient of the table skips spans of items whose largest share of the softmax is below `filter_eps`: None takes
    what the format cannot represent, 0 skips nothing, up to 1e-4 is published to keep quality. Products run in
    `hidden`'s type (fp16, bf16, fp32 without tf32), sums in fp32; the table may be fp32 beside 16-bit hidden states.

    Memory above the inputs: 8 bytes a token, one byte per 128 tokens (fewer above D 256 and in fp32) x 256 items, and
    hidden's gradient but for its weights, [M, D] in hidden's type, from forward on; with fewer tokens than keep a card
    busy, at most 64 MiB of partial sums during forward; in backward the gradients of both inputs and 16 bytes a token;
    a 16-bit copy of an fp32 table while a kernel runs. Hidden states of ignored tokens must be finite.
    ValueError for hidden sizes that are no multiple of 16 or above 1024 (256 in fp32), and for types that do
    not go together.
    """
    check_inputs(hidden, item_table, targets)
    if filter_eps is not None and not 0 <= filter_eps < 1:
        raise ValueError(f"filter_eps {filter_eps} is outside [0, 1)")
    eps = FORMAT_FILTER[hidden.dtype] if filter_eps is None else filter_eps
    threshold = math.log(eps) if eps > 0 else -1e29
    losses, *_ = full_softmax(
        hidden.contiguous(), item_table.contiguous(), targets.contiguous(), ignore_index, threshold,
        torch.is_grad_enabled() and hidden.requires_grad,
    )  # fmt: skip
    return reduce_losses(losses, targets != ignore_index, reduction)
