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

from srsplan.kernels.losses import CALIBRATION
from srsplan.kernels.reduction import IGNORE_INDEX, Reduction, reduce_losses
from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.draw import draw_items, kind_of
from srsplan.kernels.samplers.hardest import with_hardest
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
    the batch's own targets (kernels.samplers); with `sampling.hardest` a token keeps so many of what is drawn for it.
    Memory: the gathered rows [M, ns + 1, D] in fp32 and in the compute type, kept for backward, and their gradients.
    """
    kind_of(negatives, distribution)
    keep = targets != ignore_index
    targets = torch.where(keep, targets, 0)
    items = _items_of(hidden, item_table, negatives, sampling, distribution)
    logits = _logits(hidden, item_table, targets, items)
    collision = items == targets[:, None]
    negative_logits = logits[:, 1:]
    if sampling.corrected:
        kept = items.shape[1] - collision.sum(1, keepdim=True)
        correction = log_q_correction(items, targets[:, None], kept, item_table.shape[0], distribution)
        negative_logits = negative_logits + correction
    negative_logits = with_hardest(negative_logits.masked_fill(collision, -torch.inf), sampling.hardest)
    logits = torch.cat([logits[:, :1], negative_logits], 1)
    losses = torch.logsumexp(logits, 1) - logits[:, 0]
    return reduce_losses(losses, keep, reduction)


def bce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor = 1,
    *,
    sampling: Sampling = Sampling(tokens_per_set=1),  # noqa: B008 - frozen
    distribution: Distribution | InBatch | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the binary cross-entropy of the target against `negatives` items per token; arguments as for `ce_neg`.

    A token's loss is -log sigmoid(s of the target) - sum over its negatives of log(1 - sigmoid(s)). The negatives are
    summed, not averaged: equations 3 and 4 of Prakash et al., 2024 (https://github.com/apple/ml-negative-sampling) have
    the sum over all negative items, of which the drawn ones stand in. With one negative it is SASRec's loss (Kang and
    McAuley, 2018, https://arxiv.org/abs/1808.09781), where sum and mean are the same. A negative that equals the target
    adds nothing. There is no log-Q correction: every item is a problem of its own, and no sum over the catalog is
    estimated.
    Memory: the gathered rows [M, ns + 1, D] in fp32 and in the compute type, kept for backward, and their gradients.
    """
    kind_of(negatives, distribution)
    keep = targets != ignore_index
    targets = torch.where(keep, targets, 0)
    items = _items_of(hidden, item_table, negatives, sampling, distribution)
    positive, negative = _binary_losses(
        _logits(hidden, item_table, targets, items), items == targets[:, None], sampling
    )
    return reduce_losses(positive + negative, keep, reduction)


def gbce(
    hidden: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: int | Tensor,
    *,
    calibration: float = CALIBRATION,
    sampling: Sampling = Sampling(tokens_per_set=1),  # noqa: B008 - frozen
    distribution: Distribution | InBatch | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute the generalised binary cross-entropy of gSASRec; arguments as for `ce_neg`.

    Petrov and Macdonald, 2023, gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling (https://arxiv.org/abs/2308.07192). A token's loss is

        -(log(sigmoid(s of the target)^beta) + sum over its negatives of log(1 - sigmoid(s))) / (ns + 1)
        beta = alpha (t (1 - 1 / alpha) + 1 / alpha), alpha = ns / (V - 1), t the `calibration` in [0, 1]

    which the paper averages over target and negatives, as its code does (https://github.com/asash/gSASRec-pytorch).
    beta is 1 - t (1 - alpha), from 1 at t = 0 (the binary cross-entropy) down to alpha at t = 1, where the scores are
    calibrated probabilities. It multiplies the log-sigmoid, and no sigmoid is raised to a power: nothing underflows in
    fp32. A negative that equals the target adds nothing, and ns counts it all the same. There is no log-Q correction:
    beta is what corrects for the sampling. ValueError for a calibration outside [0, 1].
    Memory: that of `bce`.
    """
    if not 0 <= calibration <= 1:
        raise ValueError(f"calibration {calibration} is outside [0, 1]")
    kind_of(negatives, distribution)
    keep = targets != ignore_index
    targets = torch.where(keep, targets, 0)
    items = _items_of(hidden, item_table, negatives, sampling, distribution)
    positive, negative = _binary_losses(
        _logits(hidden, item_table, targets, items), items == targets[:, None], sampling
    )
    count = min(items.shape[1], sampling.hardest or items.shape[1])
    beta = 1 - calibration * (1 - count / (item_table.shape[0] - 1))
    return reduce_losses((beta * positive + negative) / (count + 1), keep, reduction)


def _items_of(
    hidden: Tensor,
    item_table: Tensor,
    negatives: int | Tensor,
    sampling: Sampling,
    distribution: Distribution | InBatch | None,
) -> Tensor:
    """Return the negatives of every token, int64 [M, ns]: those that are given, or a draw for each."""
    if isinstance(negatives, Tensor):
        return negatives
    shape = (hidden.shape[0], negatives)
    return draw_items(shape, item_table.shape[0], sampling, sampling.first_token, hidden.device, distribution)


def _logits(hidden: Tensor, item_table: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    """Return the logits of the target and of the items [M, ns], fp32 [M, ns + 1]."""
    everything = torch.cat([targets[:, None], items], 1)
    return torch.bmm(F.embedding(everything, item_table), hidden.unsqueeze(-1)).squeeze(-1).float()


def _binary_losses(logits: Tensor, collision: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return -log sigmoid of the target's logit, and the sum of -log(1 - sigmoid) of the negatives', fp32 [M] each."""
    negative = with_hardest(logits[:, 1:].masked_fill(collision, -torch.inf), sampling.hardest)
    return F.softplus(-logits[:, 0]), F.softplus(negative).sum(1)
