"""Scalable cross-entropy: every token against the items that random directions put into its buckets.

Mezentsev et al., 2024, Scalable Cross-Entropy Loss for Sequential Recommendations with Large Item Catalogs
(https://arxiv.org/abs/2409.18721; their code is https://github.com/AIRI-Institute/Scalable-SASRec).
Shape letters: M tokens, V items, D hidden size, b buckets and tokens of a bucket, ns items of a bucket.

Memory contract. The tokens of all buckets [b, b, D] with their items [b, ns, D], and their logits [b, b, ns + 1],
several times, kept for backward: b x b is 4 M. Beside them, while buckets are filled, the scores of as many centres as
a chunk has, [c, V] and then [c, M] in fp32, without gradient. Never [M, V].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from srsplan.kernels import chunking
from srsplan.kernels.reduction import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.samplers.draw import COIN, Stream, draw_uniform
from srsplan.kernels.samplers.sampling import Sampling


def sce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int,
    *,
    sampling: Sampling = Sampling(tokens_per_set=1),  # noqa: B008 - frozen
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the scalable cross-entropy; tensors and result are those of `eager.ce_neg`.

    b centres are drawn from a normal distribution, as functions of the seed, the step and the call's first token. The
    bucket of a centre c holds the b tokens x with the largest c.x and the `negatives` items w with the largest c.w. In
    a bucket a token's loss is the cross-entropy of its target against the bucket's items that are not its target; its
    loss is the largest over its buckets. b is 2 sqrt(M): alpha 2 and beta 1 of the paper (`chunking.buckets`), M
    tokens of the call. The mean is over the tokens that are in a bucket, as in the authors' code; the others, and
    ignored ones, have the loss 0. There is no log-Q correction: a bucket's items are the hardest, not a sample.

    A call buckets its own tokens: the passes of a batch are not together what one call over it is.
    ValueError for negatives that are not fewer than the items.
    """
    if not 0 < negatives < len(item_table):
        raise ValueError(f"{negatives} items of a bucket are not between 1 and the {len(item_table) - 1} others")
    keep = targets != ignore_index
    targets = torch.where(keep, targets, 0)
    if not len(hidden):
        return reduce_losses((hidden.sum() + item_table[:0].sum()).float().expand(0), keep, reduction)
    tokens, items = _buckets(hidden.detach(), item_table.detach(), keep, negatives, sampling)
    count, places = len(tokens), tokens.view(-1)
    positive = torch.bmm(F.embedding(targets, item_table)[:, None], hidden.unsqueeze(-1)).view(-1)
    inside = hidden.index_select(0, places).view(count, tokens.shape[1], -1)
    logits = torch.bmm(inside, F.embedding(items, item_table).transpose(1, 2)).float()
    logits = logits.masked_fill(items[:, None] == targets[tokens][..., None], -torch.inf)
    own = positive.float().index_select(0, places).view(count, -1, 1)
    losses = torch.logsumexp(torch.cat([logits, own], 2), 2) - own[..., 0]
    largest = losses.new_full(keep.shape, -torch.inf).scatter_reduce(0, places, losses.view(-1), "amax")
    return reduce_losses(largest, keep & (largest > -torch.inf), reduction)


def _buckets(hidden: Tensor, table: Tensor, keep: Tensor, negatives: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the tokens and the items of every bucket, int64 [b, b] and [b, ns]."""
    count = chunking.buckets(len(hidden))
    centres = gaussian_centres(count, hidden.shape[1], sampling, hidden.device)
    hidden = hidden.float()
    return _nearest(centres, hidden, count, keep), _nearest(centres, table.float(), negatives, None)


def gaussian_centres(count: int, dim: int, sampling: Sampling, device: torch.device) -> Tensor:
    """Return normal numbers, fp32 [b, D], by Box and Muller's transform: equal settings give equal centres."""
    drawn = (
        draw_uniform((count, dim), COIN, sampling, sampling.first_token, device, stream)
        for stream in (Stream.ITEMS, Stream.COINS)
    )
    radius, angle = (each.float().add_(0.5).div_(COIN) for each in drawn)
    return radius.log_().mul_(-2).sqrt_().mul_(angle.mul_(2 * math.pi).cos_())


def _nearest(centres: Tensor, rows: Tensor, count: int, keep: Tensor | None) -> Tensor:
    """Return the rows [R, D] with the largest products with each centre, int64 [b, count]; only those that are kept."""
    found = torch.empty((len(centres), count), dtype=torch.int64, device=rows.device)
    chunk = chunking.bucket_chunk(len(centres), len(rows))
    scores = torch.empty((chunk, len(rows)), device=rows.device)
    best = torch.empty((chunk, count), device=rows.device)
    for start in chunking.chunk_starts(len(centres), chunk, rows.is_meta):
        part, places = scores[: len(centres) - start], found[start : start + chunk]
        torch.mm(centres[start : start + chunk], rows.t(), out=part)
        if keep is not None:
            part.masked_fill_(~keep, -torch.inf)
        torch.topk(part, count, dim=1, sorted=False, out=(best[: len(part)], places))
    return found
