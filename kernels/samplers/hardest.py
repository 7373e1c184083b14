"""Keeping the hardest of the items that were drawn: adaptive sampling.

Of the candidates that a set draws, every token keeps those that the model, as it is now, scores highest for it; the
others leave its sum. Rendle and Freudenthaler, 2014, Improving pairwise learning for item recommendation from implicit
feedback (https://doi.org/10.1145/2556195.2556248); as in Prakash et al., 2024, section 4.2
(https://github.com/apple/ml-negative-sampling). Candidates are shared by a set, the choice is the token's.

There is no log-Q correction: it needs the probability with which an item is kept, which depends on the scores of all
other candidates and is not known. So the sum does not estimate that of the catalog: it is about hard items only.

Shape letters: n candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 2.0**-19
"""How far below the last logit that is kept others stay, as a share of it, or of 1: an item that was drawn twice has
one score, which products may round in two ways. Its copies stay together, in every form and however a batch is cut."""


def place_of_last(count: int, kept: int) -> int:
    """Return the place, from the lowest of `count` logits, of the last one that is kept; 1 is the lowest."""
    return max(1, count - kept + 1)


def lowered(least: Tensor) -> Tensor:
    """Move the last logits that are kept down by what rounding may be, in place. Memory: a tensor of their size."""
    return least.sub_(least.abs().clamp_(min=1.0), alpha=ROUNDING)


def least_kept(logits: Tensor, kept: int) -> Tensor:
    """Return what the kept logits of [*, n] are not below, [*, 1] without gradient: the kept-th highest, or its equal.

    It is the lowest logit where there are no more.
    """
    return lowered(logits.detach().kthvalue(place_of_last(logits.shape[-1], kept), -1, keepdim=True).values)


def with_hardest(logits: Tensor, kept: int | None) -> Tensor:
    """Return logits [*, n] with -infinity for those that are not among the `kept` highest; None keeps all.

    Memory: a copy of the logits and a mask.
    """
    if kept is None or not logits.numel():
        return logits
    return logits.masked_fill(logits < least_kept(logits, kept), -torch.inf)
