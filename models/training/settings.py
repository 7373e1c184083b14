"""Settings of a training: everything that a run decides beside its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from srsplan.models.config import require_positive
from srsplan.models.errors import InputError
from srsplan.models.training.step import OPTIMIZERS, StepSettings

LARGEST_EXPONENT = 4.0
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Settings(StepSettings):
    """Settings of a training; an impossible value is an InputError at construction."""

    epochs: int = 200
    """Epochs at most."""
    patience: int = 10
    """Evaluations without a better validation NDCG@10 before training ends."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    validation_users: int = 10_000
    """Validation ranks at most this many users, drawn once; the test ranks all."""
    evaluation_batch: int = 256
    """Users ranked at once."""
    keep_seen: bool = False
    """Items that are already in a user's history may be recommended again, in validation and in the test."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs, patience=self.patience, evaluate_every=self.evaluate_every,
            validation_users=self.validation_users, evaluation_batch=self.evaluation_batch,
        )  # fmt: skip
        self._check_optimizer()
        if not 0 <= self.popularity_exponent <= LARGEST_EXPONENT:
            raise InputError(
                f"--popularity-exponent {self.popularity_exponent} is outside 0..{LARGEST_EXPONENT:g}",
                "1 draws items as often as they occur, 0 all alike, 0.75 is between",
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"--seed {self.seed} is outside 0..{LARGEST_SEED}", "42 is the default")

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"unknown --optimizer {self.optimizer!r}", f"optimizers are {', '.join(OPTIMIZERS)}")
        if not 0 < self.learning_rate < inf:
            raise InputError(f"--learning-rate {self.learning_rate} is not a number above zero", "the paper's is 0.001")
        if not 0 <= self.weight_decay < inf:
            raise InputError(f"--weight-decay {self.weight_decay} is not a number from 0 up", "0 decays nothing")
