"""Settings of a training: everything that a run decides beside its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from srsplan.models.checks import require_positive
from srsplan.models.errors import InputError
from srsplan.models.training.schedule import SHAPES, LearningRates, Shape
from srsplan.models.training.step import OPTIMIZERS, StepSettings

LARGEST_EXPONENT = 4.0
LARGEST_PERCENT = 100.0
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
    schedule: Shape = "constant"
    """The course of the learning rate after the warm-up: constant, or a cosine over the planned steps."""
    final_learning_rate: float = 0.0
    """The learning rate that a cosine ends at."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows from nothing, in a straight line."""
    warmup_percent: float = 0.0
    """The same as a share of the planned steps, in percent; one of the two may be given."""
    osf: int | None = None
    """Over-sampling factor: epochs after which mini-batches are used again, with their negatives. None: never."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs, patience=self.patience, evaluate_every=self.evaluate_every,
            validation_users=self.validation_users, evaluation_batch=self.evaluation_batch,
        )  # fmt: skip
        self._check_optimizer()
        self._check_schedule()
        if self.clip_norm is not None and not 0 < self.clip_norm < inf:
            raise InputError(f"--clip-norm {self.clip_norm} is not a number above zero", "1 is usual")
        if self.osf is not None and self.osf < 1:
            raise InputError(
                f"--osf {self.osf} is below 1", "mini-batches can be used again after one epoch, not before"
            )
        if not 0 <= self.popularity_exponent <= LARGEST_EXPONENT:
            raise InputError(
                f"--popularity-exponent {self.popularity_exponent} is outside 0..{LARGEST_EXPONENT:g}",
                "1 draws items as often as they occur, 0 all alike, 0.75 is between",
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"--seed {self.seed} is outside 0..{LARGEST_SEED}", "42 is the default")

    def learning_rates(self, batches: int) -> LearningRates:
        """Return the learning rate of every step, for epochs of so many batches; InputError where they are too few."""
        planned = self.epochs * batches
        return LearningRates(
            shape=self.schedule,
            rate=self.learning_rate,
            final_rate=self.final_learning_rate,
            warmup_steps=self.warmup_steps or round(planned * self.warmup_percent / 100),
            planned_steps=planned,
        )

    @property
    def rates_follow_epochs(self) -> bool:
        """Tell whether the learning rate of a step depends on how many epochs are planned."""
        return self.schedule != "constant" or self.warmup_percent > 0

    def _check_schedule(self) -> None:
        if self.schedule not in SHAPES:
            raise InputError(f"unknown --schedule {self.schedule!r}", f"schedules are {', '.join(SHAPES)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise InputError(
                f"--final-learning-rate {self.final_learning_rate} is outside 0..{self.learning_rate:g}",
                "a cosine falls from --learning-rate to it; 0 is the default",
            )
        if self.final_learning_rate and self.schedule == "constant":
            raise InputError("--final-learning-rate means nothing to a constant schedule", "add --schedule cosine")
        if self.warmup_steps < 0 or not 0 <= self.warmup_percent < LARGEST_PERCENT:
            raise InputError(
                f"--warmup-steps {self.warmup_steps} and --warmup-percent {self.warmup_percent} are no warm-up",
                "give a number of steps from 0 up, or a share from 0 up and below 100",
            )
        if self.warmup_steps and self.warmup_percent:
            raise InputError("--warmup-steps and --warmup-percent contradict each other", "give the one that is meant")

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"unknown --optimizer {self.optimizer!r}", f"optimizers are {', '.join(OPTIMIZERS)}")
        if not 0 < self.learning_rate < inf:
            raise InputError(f"--learning-rate {self.learning_rate} is not a number above zero", "the paper's is 0.001")
        if not 0 <= self.weight_decay < inf:
            raise InputError(f"--weight-decay {self.weight_decay} is not a number from 0 up", "0 decays nothing")
