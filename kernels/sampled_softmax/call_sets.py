"""The sets of negatives that a call's tokens belong to: some of its batch's, or those that are given.

Shape letters: M tokens, ns negatives of a set, S sets of a chunk, G places of a set: g of them, or fewer where the call
is smaller than a window of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels.chunking import Windows, set_count
from srsplan.kernels.samplers.sampling import Sampling


@dataclass(frozen=True)
class CallSets:
    """The windows of a batch, the part of it that a call over M tokens covers, and ns."""

    windows: Windows
    first_token: int
    tokens: int
    negatives: int

    @classmethod
    def of(cls, negatives: int | Tensor, sampling: Sampling, tokens: int) -> CallSets:
        """Return those of a call; negatives that are given, [sets, ns], make a batch of the call, of one window."""
        if isinstance(negatives, Tensor):
            sets, per_set = negatives.shape
            group = set_count(tokens, max(1, sets))
            return cls(Windows(stride=max(1, sets), tokens_per_set=max(1, group)), 0, tokens, per_set)
        return cls(sampling.windows(tokens), sampling.first_token, tokens, negatives)

    @property
    def numbers(self) -> range:
        """The sets, as the batch numbers them."""
        return self.windows.sets(self.first_token, self.tokens)

    def chunk(self, dim: int) -> int:
        """Return the sets of a chunk for hidden size `dim`."""
        return self.windows.chunk_sets(self.tokens, self.negatives, dim)

    def members(self, sets: range, device: torch.device) -> Tensor:
        """Return the tokens of some sets as the call numbers them, int64 [S, G]; outside of [0, M) is a hole."""
        windows, places = self.windows, self.windows.places(self.first_token, self.tokens)
        numbers = torch.arange(sets.start, sets.stop, device=device)
        begin = numbers // windows.stride * windows.tokens + numbers % windows.stride - self.first_token
        return begin[:, None] + torch.arange(places.start, places.stop, device=device) * windows.stride
