"""The settings that every sampled loss shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings that negatives are drawn with, the same for every sampled loss."""

    tokens_per_set: int = 32
    """g: tokens that share one set of negatives. 1 draws for every token. Set k holds tokens k, k + sets, ...:
    the stride puts tokens of different users into a set, which is what keeps quality (neighbours lose 12%)."""
    log_q: bool = True
    """The logQ correction: log((V - 1) / kept negatives) is added to the negatives' logits, so that their sum estimates
    that of the whole catalog."""
    seed: int = 0
    """With `step`, fixes the draw: a resumed run repeats it."""
    step: int = 0
    """The training step."""

    def __post_init__(self) -> None:
        if self.tokens_per_set < 1:
            raise ValueError(f"tokens_per_set {self.tokens_per_set} is below 1")
