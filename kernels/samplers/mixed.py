"""Drawing a part of a set's negatives from the targets of the batch, and the others uniformly: mixed sampling.

Yang et al., 2020, Mixed negative sampling for learning two-tower neural networks in recommendations
(https://doi.org/10.1145/3366424.3386195). They add uniform items to the batch's own; where the hardest are chosen among
such candidates, Prakash et al., 2024 (https://github.com/apple/ml-negative-sampling), draw 1 from the batch for 10
uniform ones, an `in_batch_share` of 1/11.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from srsplan.kernels.samplers.in_batch import InBatch, in_batch


@dataclass(frozen=True)
class Mixed(InBatch):
    """The first `from_batch` of a set's `negatives` are drawn from slots int64 [K], the others from the whole catalog.

    log_prob fp32 [V] is that of the mixture: q(i) = share x (share of item i among the slots) + (1 - share) / V, with
    share = from_batch / negatives. Numbers of draws are fixed (deterministic mixture sampling), and each draw stands
    for 1 / (negatives x q) whichever part it is of (the balance heuristic; Veach and Guibas, 1995, Optimally combining
    sampling techniques): the sum over all items but the target is estimated without bias.
    """

    from_batch: int
    negatives: int

    def check(self, negatives: int) -> None:
        """Raise ValueError where another number of negatives is drawn than the mixture is for."""
        if negatives != self.negatives:
            raise ValueError(f"a mixture for {self.negatives} negatives of a set, and {negatives} are drawn")


def mixed(targets: Tensor, catalog: int, negatives: int, share: float, ignore_index: int | None = None) -> Mixed:
    """Return the mixture of a batch's targets int64 [M] and the whole catalog; the rest is as for `in_batch`.

    Of a set's negatives, round(share x negatives) come from the batch. ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is outside [0, 1]")
    from_batch = round(share * negatives)
    there = in_batch(targets, catalog, ignore_index)
    part = from_batch / negatives
    log_prob = there.log_prob.exp_().mul_(part).add_((1 - part) / catalog).log_()
    return Mixed(there.slots, log_prob, from_batch, negatives)
