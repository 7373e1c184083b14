"""The learning rate of every step, as a function of the step's number: a resumed run computes what it would have had.

A linear warm-up comes first: step s of w, from 0, has (s + 1) / w of the rate. What follows is constant, or half a
cosine over the planned steps that are left, epochs x batches, down to the final rate (Loshchilov and Hutter, 2017,
without restarts, https://arxiv.org/abs/1608.03983): the same rates as torch's LinearLR, then CosineAnnealingLR.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal, get_args

from srsplan.models.errors import InputError

Shape = Literal["constant", "cosine"]
"""The course of the learning rate after the warm-up."""

SHAPES = get_args(Shape)


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """The learning rate of every step; InputError where a warm-up leaves no step to a cosine."""

    shape: Shape
    rate: float
    """The rate at the end of the warm-up."""
    final_rate: float
    """The rate that a cosine ends at."""
    warmup_steps: int
    planned_steps: int
    """Steps of all epochs: where a cosine ends."""

    def __post_init__(self) -> None:
        if self.shape == "cosine" and self.warmup_steps >= self.planned_steps:
            raise InputError(
                f"a warm-up of {self.warmup_steps:,} steps leaves none of the {self.planned_steps:,} planned steps",
                "give fewer --warmup-steps or more --epochs",
            )

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0; after the planned steps a cosine stays where it ended."""
        if step < self.warmup_steps:
            return self.rate * (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return self.rate
        done = min(1.0, (step - self.warmup_steps) / (self.planned_steps - self.warmup_steps))
        return self.final_rate + (self.rate - self.final_rate) * (1 + cos(pi * done)) / 2
