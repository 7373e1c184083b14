"""The losses from their definitions, in the type of their tensors: float64 is the truth, 16 bit what eager can do.

Shape letters: M tokens, V items, D hidden size, ns negatives of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srsplan.kernels import eager
from srsplan.kernels.reduction import IGNORE_INDEX, reduce_losses
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.hardest import with_hardest
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.mixed import Mixed

full_softmax = eager.ce
"""The full softmax has its definition there."""


def sampled_softmax(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    items: Tensor,
    drawn_by: Distribution | InBatch | None,
    hardest: int | None = None,
) -> Tensor:
    """Return the mean loss against given negatives, int64 [M, ns], with the log-Q of the distribution they are from.

    With `hardest` it is against so many of them, those with the highest logits, and without log-Q.

    Sums are taken in fp32 where the tensors are of 16 bit, in their own type otherwise.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    keep = targets != IGNORE_INDEX
    targets = torch.where(keep, targets, 0)
    hit = items == targets[:, None]
    kept = (~hit).sum(1, keepdim=True).clamp(min=1).to(wide)
    scores = torch.bmm(table[items], hidden[:, :, None])[:, :, 0].to(wide)
    if hardest is not None:
        scores = with_hardest(scores.masked_fill(hit, -torch.inf), hardest)
    elif drawn_by is None:
        scores = scores + (torch.log(torch.full_like(kept, len(table) - 1)) - torch.log(kept))
    elif isinstance(drawn_by, Mixed):
        scores = scores - drawn_by.log_prob.to(wide)[items] - math.log(items.shape[1])
    else:
        share = drawn_by.log_prob.to(wide)
        rest = torch.log1p(-torch.exp(share[targets]))[:, None]
        scores = scores + rest - share[items] - torch.log(kept)
    positive = torch.bmm(table[targets][:, None], hidden[:, :, None])[:, 0, 0].to(wide)
    logits = torch.cat([positive[:, None], scores.masked_fill(hit, -torch.inf)], 1)
    return reduce_losses(torch.logsumexp(logits, 1) - positive, keep, "mean")
