"""The settings that every sampled loss shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srsplan.kernels.chunking import Windows


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings that negatives are drawn with, the same for every sampled loss."""

    tokens_per_set: int = 32
    """g: tokens that share one set of negatives. 1 draws for every token. A set holds every R-th token of a window of
    R x g (kernels.chunking.Windows): the stride puts tokens of different users into a set, which is what keeps quality
    (neighbours lose 12%)."""
    log_q: bool = True
    """The logQ correction: log((V - 1) / kept negatives) is added to the negatives' logits, so that their sum estimates
    that of the whole catalog."""
    blocks: bool = True
    """Uniform negatives of `cce-` come in blocks of a permutation of the catalog (kernels.samplers.blocks): without
    replacement within a set, and with a gradient of the table that needs no atomic additions. False draws every one
    independently."""
    hardest: int | None = None
    """Adaptive sampling: every token keeps so many of its set's negatives, those of the highest logits, and the others
    leave its sum (kernels.samplers.hardest). None keeps all. Then draws are independent, and there is no logQ."""
    seed: int | Tensor = 0
    """With `step`, fixes the draw: a resumed run repeats it. Either may be a tensor, int64 [], which the Triton kernels
    load when they run: a CUDA graph that is replayed draws what it holds then. It is on the device of the hidden
    states, and keeps its value between forward and backward. The other forms take ints."""
    step: int | Tensor = 0
    """The training step."""
    first_token: int = 0
    """The number of the call's first token within its batch, where a batch is run in several calls."""
    batch_tokens: int | None = None
    """N: the tokens of the whole batch. None: the batch ends with the call."""

    def __post_init__(self) -> None:
        for each in (self.seed, self.step):
            if isinstance(each, Tensor) and (each.dtype != torch.int64 or each.ndim):
                raise ValueError(f"seed and step as tensors are int64 [], not {each.dtype} {list(each.shape)}")
        if self.tokens_per_set < 1:
            raise ValueError(f"tokens_per_set {self.tokens_per_set} is below 1")
        if self.hardest is not None and self.hardest < 1:
            raise ValueError(f"hardest {self.hardest} is below 1")
        if self.first_token < 0:
            raise ValueError(f"first_token {self.first_token} is negative")
        if self.batch_tokens is not None and self.batch_tokens < self.first_token:
            raise ValueError(f"first_token {self.first_token} is beyond a batch of {self.batch_tokens} tokens")

    @property
    def corrected(self) -> bool:
        """Tell whether negatives' logits are corrected: `log_q`, where the probability of what is kept is known."""
        return self.log_q and self.hardest is None

    def moment(self) -> tuple[int, int]:
        """Return seed and step; ValueError for tensors: a GPU would be waited for to see what they hold."""
        if isinstance(self.seed, Tensor) or isinstance(self.step, Tensor):
            raise ValueError("seed and step as tensors are for the Triton kernels: the other forms take ints")
        return self.seed, self.step

    def windows(self, tokens: int) -> Windows:
        """Return the windows of the batch that a call over M tokens is a part of; ValueError where it does not fit."""
        end = self.first_token + tokens
        if self.batch_tokens is not None and end > self.batch_tokens:
            raise ValueError(f"tokens {self.first_token} to {end} are beyond a batch of {self.batch_tokens} tokens")
        return Windows.of(end if self.batch_tokens is None else self.batch_tokens, self.tokens_per_set)
