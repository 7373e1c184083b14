"""The losses in plain PyTorch: the oracle that the chunked and the Triton forms are held to.

Shape letters: M tokens, V items, D hidden size, ns negatives.
Every function takes hidden [M, D], item_table [V, D], targets int64 [M] with item indices in [0, V) or
`ignore_index`, and returns a scalar for reduction "mean" (over targets that are not ignored; 0 where there are none)
and "sum", or fp32 [M] for "none" (0 at ignored targets).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srsplan.kernels.reduction import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.draw import draw_items, draw_uniform, kind_of
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.log_q import log_q_correction
from srsplan.kernels.samplers.sampling import Sampling


def ce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the cross-entropy over the whole catalog.

    Memory: logits [M, V] in the compute type, their log-softmax (fp32 copies under autocast) kept for backward, and
    the gradient of each.
    """
    losses = F.cross_entropy(F.linear(hidden, item_table), targets, ignore_index=ignore_index, reduction="none")
    return reduce_losses(losses, targets != ignore_index, reduction)


def ce_neg(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor,
    *,
    sampling: Sampling = Sampling(tokens_per_set=1),  # noqa: B008 - frozen
    distribution: Distribution | InBatch | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the cross-entropy of the target against `negatives` items per token, drawn or given as int64 [M, ns].

    Every token has a set of its own, numbered as the token is in its batch (`sampling.first_token`).
    A negative that equals the target leaves the sum and the count. `distribution` draws by weight, or from
    the batch's own targets (kernels.samplers).
    Memory: the gathered rows [M, ns + 1, D] in fp32 and in the compute type, kept for backward, and their gradients.
    """
    kind_of(negatives, distribution)
    keep = targets != ignore_index
    targets = torch.where(keep, targets, 0)
    if isinstance(negatives, int):
        shape = (targets.shape[0], negatives)
        negatives = draw_items(shape, item_table.shape[0], sampling, sampling.first_token, hidden.device, distribution)
    items = torch.cat([targets[:, None], negatives], 1)
    logits = torch.bmm(F.embedding(items, item_table), hidden.unsqueeze(-1)).squeeze(-1).float()
    collision = negatives == targets[:, None]
    negative_logits = logits[:, 1:]
    if sampling.log_q:
        kept = negatives.shape[1] - collision.sum(1, keepdim=True)
        correction = log_q_correction(negatives, targets[:, None], kept, item_table.shape[0], distribution)
        negative_logits = negative_logits + correction
    logits = torch.cat([logits[:, :1], negative_logits.masked_fill(collision, -torch.inf)], 1)
    losses = torch.logsumexp(logits, 1) - logits[:, 0]
    return reduce_losses(losses, keep, reduction)


def bce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor = 1,
    *,
    sampling: Sampling = Sampling(tokens_per_set=1),  # noqa: B008 - frozen
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the binary cross-entropy of the target against one negative, SASRec's loss; indices may be [M, 1].

    Memory: two gathers [M, D] and their products, kept for backward.
    """
    keep = targets != ignore_index
    targets = torch.where(keep, targets, 0)
    if isinstance(negatives, int):
        if negatives != 1:
            raise ValueError(f"bce takes 1 negative, not {negatives}: use ce_neg")
        shape = (targets.shape[0], 1)
        negatives = draw_uniform(shape, item_table.shape[0], sampling, sampling.first_token, hidden.device)
    positive, negative = ((F.embedding(items, item_table) * hidden).sum(-1) for items in (targets, negatives[:, 0]))
    negative = negative.masked_fill(negatives[:, 0] == targets, -torch.inf)
    return reduce_losses(F.softplus(-positive) + F.softplus(negative), keep, reduction)
