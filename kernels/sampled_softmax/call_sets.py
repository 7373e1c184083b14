"""The sets of negatives that a call's tokens belong to: some of its batch's, or those that are given.

Shape letters: M tokens, ns negatives of a set, S sets of a chunk, g places of a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels import chunking
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
        return chunking.sampled_chunk_sets(max(1, self.tokens), self.negatives, dim, self.windows.tokens_per_set)

    def members(self, sets: range, device: torch.device) -> Tensor:
        """Return the tokens of some sets as the call numbers them, int64 [S, g]; outside of [0, M) is a hole."""
        windows = self.windows
        numbers = torch.arange(sets.start, sets.stop, device=device)
        begin = numbers // windows.stride * windows.tokens + numbers % windows.stride - self.first_token
        return begin[:, None] + torch.arange(windows.tokens_per_set, device=device) * windows.stride
