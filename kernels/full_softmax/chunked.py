"""The full softmax in plain PyTorch, a chunk of tokens at a time.

Shape letters: M tokens, V items, D hidden size, T tokens of a chunk.

Memory contract. Above the inputs: two [T, V] buffers in the compute type (on a CPU in fp32 one), one [V, D] gradient in
fp32, the gradient of hidden, and in 16 bit a [V, D] copy of the table and one [65536, D] block. Never [M, V].
"""

from __future__ import annotations

import torch
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.chunked_autograd import GradientSums, LossesAndGradients, Tokens, Wanted

SMALLEST_SHARE = 1e-30
"""Shares of fp32 that are far from its smallest number: their logarithm is exact to rounding."""


def softmax_chunks(tokens: Tokens, table: Tensor, wanted: Wanted | None, dtype: torch.dtype) -> LossesAndGradients:
    """Return losses [M], and the gradients that are wanted; products run in `dtype`."""
    count, chunk = tokens.hidden.shape[0], tokens.chunk
    scored = table.to(dtype)
    losses = torch.empty(count, dtype=torch.float32, device=table.device)
    buffers = _buffers(min(chunk, count), scored)
    sums = None if wanted is None else GradientSums(tokens.hidden, table, wanted)
    for start in chunking.chunk_starts(count, chunk, table.is_meta):
        rows = slice(start, min(start + chunk, count))
        losses[rows] = _softmax_chunk(tokens, rows, scored, buffers, sums)
    return LossesAndGradients(losses) if sums is None else sums.with_losses(losses)


def _softmax_chunk(
    tokens: Tokens, rows: slice, scored: Tensor, buffers: tuple[Tensor, Tensor], sums: GradientSums | None
) -> Tensor:
    """Return losses of some rows, fp32 [T]; their gradients go to `sums`. Buffers: those of `_buffers`."""
    scores, share = (buffer[: rows.stop - rows.start] for buffer in buffers)
    hidden = tokens.hidden[rows].to(scored.dtype)
    target = tokens.safe_targets[rows, None]
    torch.mm(hidden, scored.t(), out=scores)
    torch.softmax(scores, 1, out=share)
    if buffers[0] is buffers[1]:
        losses = _losses_of_shares(hidden, scored, share, target)
    else:  # log-sum-exp from the largest entry: its share is at least 1 / V, so that its logarithm is safe in 16 bit
        lse = scores.amax(1, keepdim=True).float() - share.amax(1, keepdim=True).float().log()
        losses = lse - scores.gather(1, target).float()
    if sums is not None:
        share.scatter_add_(1, target, torch.full_like(target, -1, dtype=scored.dtype))
        _add_gradients(sums, rows, share, hidden, scored)
    return losses.squeeze(1)


def _buffers(rows: int, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Return two [T, V] in the compute type, for scores and shares; on a CPU in fp32 one for both, which is faster."""
    scores = torch.empty(rows, len(scored), dtype=scored.dtype, device=scored.device)
    in_place = scored.device.type == "cpu" and scored.dtype == torch.float32
    return scores, scores if in_place else torch.empty_like(scores)


def _losses_of_shares(hidden: Tensor, scored: Tensor, share: Tensor, target: Tensor) -> Tensor:
    """Return losses fp32 [T, 1] from fp32 shares [T, V] alone.

    Scores are computed once more where the target's share is next to 0.
    """
    shares = share.gather(1, target)
    losses = -shares.log()
    rare = (shares < SMALLEST_SHARE).squeeze(1).nonzero().squeeze(1)
    if len(rare):
        scores = hidden[rare] @ scored.t()
        losses[rare] = scores.logsumexp(1, keepdim=True) - scores.gather(1, target[rare])
    return losses


def _add_gradients(sums: GradientSums, rows: slice, share: Tensor, hidden: Tensor, scored: Tensor) -> None:
    """Add both gradients: share [T, V] is softmax minus one-hot, hidden [T, D], scored [V, D], in the compute type."""
    relative = sums.relative[rows, None]
    sums.hidden[rows] = (share @ scored) * (relative * sums.scale)
    weighted = hidden * relative.to(hidden.dtype)
    if hidden.dtype == torch.float32:
        sums.table.addmm_(share.t(), weighted.mul_(sums.table_scale))
        return
    for first in range(0, len(sums.table), chunking.ITEM_ROWS):
        block = slice(first, first + chunking.ITEM_ROWS)
        # the product with the scale is taken in fp32: 16 bit hold neither a mean over a million nor a scaler's 65536
        sums.table[block].addcmul_(share[:, block].t() @ weighted, sums.table_scale)
