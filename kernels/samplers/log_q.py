"""The logQ correction: the term added to a negative's logit so that the sampled sum estimates the full one.

Bengio and Senecal, 2008, Adaptive importance sampling to accelerate training of a neural probabilistic language model.
Shape letters: V items, ns negatives of a set, the last axis of the items.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srsplan.kernels.samplers.alias_table import Distribution
from srsplan.kernels.samplers.in_batch import InBatch
from srsplan.kernels.samplers.mixed import Mixed


def log_q_correction(
    items: Tensor, target: Tensor, kept: Tensor, catalog: int, distribution: Distribution | InBatch | None
) -> Tensor:
    """Return log((1 - q of the target) / (kept x q of the item)), fp32, for shapes that broadcast.

    A kept negative has probability q / (1 - q of the target); `kept` counts a token's negatives that are not its
    target. Without a distribution items are uniform. Of a mixture, whose parts have fixed numbers of draws, a negative
    stands for 1 / (ns x q of the item), whatever is kept: what is left out is the target's own part of the sum.
    """
    if distribution is None:
        return uniform_log_q_correction(kept, catalog)
    if isinstance(distribution, Mixed):
        return -distribution.log_prob[items] - math.log(items.shape[-1])
    rest = torch.log1p(-torch.exp(distribution.log_prob[target]))
    return rest - distribution.log_prob[items] - torch.log(kept.clamp(min=1).float())


def uniform_log_q_correction(kept: Tensor, catalog: int) -> Tensor:
    """Return log((V - 1) / kept), fp32, the shape of `kept`: each uniform negative has probability 1 / (V - 1)."""
    return math.log(max(1, catalog - 1)) - torch.log(kept.clamp(min=1).float())
