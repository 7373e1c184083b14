"""The pace of a training, measured on a few of its real steps and one evaluation batch that are thrown away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from srsplan.models.training import retries
from srsplan.models.training.callbacks import NoCallbacks
from srsplan.models.training.evaluation import subset
from srsplan.models.training.run import Order, RunData, build

MOST_STEPS, MOST_USERS = 6, 32
LIMIT_SECONDS = 5.0
"""Seconds after which no further step is measured."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that parts of a training take on this machine."""

    step_seconds: float
    """The median of the measured steps; the first one warms up and is left out where there are others."""
    steps: int
    """Steps that were measured."""
    epoch_seconds: float
    """Seconds of all steps of an epoch and its share of the evaluations."""
    test_seconds: float

    def run_seconds(self, epochs: int) -> float:
        """Return the time of a whole run without early stopping and without writing checkpoints."""
        return epochs * self.epoch_seconds + self.test_seconds


def measure(order: Order, data: RunData) -> Pace:
    """Take some steps on a model of its own; neither the run's model nor its random numbers notice."""
    with torch.random.fork_rng(devices=[]):
        trainer = build(order, data.split)
        settings, batches = order.settings, trainer.batches
        seconds: list[float] = []
        for batch in batches.epoch(0):
            began = time.perf_counter()
            retries.train_batch(trainer.step, batch, trainer.progress, NoCallbacks())
            seconds.append(time.perf_counter() - began)
            if len(seconds) == MOST_STEPS or sum(seconds) > LIMIT_SECONDS:
                break
        some = subset(data.split.validation, min(MOST_USERS, settings.evaluation_batch), settings.seed)
        began = time.perf_counter()
        trainer.ranked(some, NoCallbacks())
        user_seconds = (time.perf_counter() - began) / len(some)
    measured = seconds[1:] or seconds
    step_seconds = median(measured)
    validated = min(len(data.split.validation), settings.validation_users) / settings.evaluate_every
    return Pace(
        step_seconds=step_seconds,
        steps=len(measured),
        epoch_seconds=step_seconds * len(batches) + user_seconds * validated,
        test_seconds=user_seconds * len(data.split.test),
    )
